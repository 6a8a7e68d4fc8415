//! Finding and running buildpacks; ours and Heroku's.
