//! The server file, the recipe, the Procfile and app.json. The only room that parses YAML.
