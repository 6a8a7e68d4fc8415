# Functions for detect, compile and release scripts that look at a project's files. Sourced after `lib` is set; plain POSIX sh.

TAB=$(printf '\t')
LINE='
'

# read_package FILE: PACKAGE becomes the members of a package.json, as lib/json.awk prints them; nothing if the file is not valid JSON.
read_package() {
  PACKAGE=
  [ ! -f "$1" ] || PACKAGE=$(awk -f "$lib/json.awk" "$1" 2>/dev/null) || PACKAGE=
}

# member KEY [KEY]: VALUE becomes the text of that member of PACKAGE, as it stands between the quotes; fails if there is none.
member() {
  _path=$1${2:+$TAB$2}$TAB
  case $LINE$PACKAGE in *"$LINE$_path"*) ;; *) return 1 ;; esac
  # Of two members with one name the last counts, as in JavaScript.
  VALUE=$LINE$PACKAGE
  VALUE=${VALUE##*"$LINE$_path"}
  VALUE=${VALUE%%"$LINE"*}
}

# script NAME: VALUE becomes the script of that name in PACKAGE; fails if there is none.
script() { member scripts "$1"; }

# frontend_only DIRECTORY: whether its package.json belongs to a site of files: no script `start`, and pages or a script `build`. A
# static.json says so in any case, unless there is a Procfile.
frontend_only() {
  [ -f "$1/package.json" ] && [ ! -f "$1/Procfile" ] || return 1
  [ ! -f "$1/static.json" ] || return 0
  [ ! -f "$1/server.js" ] || return 1
  read_package "$1/package.json"
  ! script start || return 1
  [ -f "$1/index.html" ] || [ -f "$1/public/index.html" ] || script build
}
