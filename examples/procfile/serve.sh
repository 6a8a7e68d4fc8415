# Writes the page of this release, then serves it with python3.
set -eu
site=$(mktemp -d)
printf 'Hello from a Procfile\nrelease %s\n' "${LARDER_RELEASE:-unknown}" >"$site/index.html"
exec python3 -u -m http.server --bind 127.0.0.1 --directory "$site" "${PORT:-8000}"
