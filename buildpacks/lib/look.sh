# Functions for detect, compile and release scripts that read a project's files, in POSIX sh. Scripts set `lib` and then source this file.

TAB=$(printf '\t')
LINE='
'

# read_package FILE: sets PACKAGE to the members of a package.json, as lib/json.awk prints them, or to nothing if the JSON is invalid.
read_package() {
  PACKAGE=
  [ ! -f "$1" ] || PACKAGE=$(awk -f "$lib/json.awk" "$1" 2>/dev/null) || PACKAGE=
}

# member KEY [KEY]: sets VALUE to the text of that member of PACKAGE, with its escapes; fails if there is none.
member() {
  _path=$1${2:+$TAB$2}$TAB
  case $LINE$PACKAGE in *"$LINE$_path"*) ;; *) return 1 ;; esac
  # The last of several members with one name is used, as in JavaScript.
  VALUE=$LINE$PACKAGE
  VALUE=${VALUE##*"$LINE$_path"}
  VALUE=${VALUE%%"$LINE"*}
}

# script NAME: sets VALUE to the script of that name in PACKAGE; fails if there is none.
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
