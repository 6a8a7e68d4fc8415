# Functions for the compile scripts of larder's own buildpacks, in POSIX sh. Scripts set `lib` and then source this file.
#
# After `prepare "$@"`, BUILD_DIR and CACHE_DIR are absolute, the configuration is in the environment, and HOME is a directory in the
# cache for the files of tools. After `scratch` or `run`, TMP is a directory that is removed at the end.

LC_ALL=C.UTF-8
export LC_ALL

# A fixed time for generated files, so that the same source gives the same bytes.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-315532800}
export SOURCE_DATE_EPOCH

title() { printf '%s %s\n' '----->' "$*"; }
info() { printf '       %s\n' "$*"; }
warn() { printf ' !     %s\n' "$*"; }

# fail MESSAGE: ends the build. larder puts the last ` !     ` line into git's rejected line.
fail() {
  printf ' !     %s\n' "$*"
  exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

# editable: succeeds if the build runs in a checkout in which a person works. Then nothing that the person may have made is deleted or replaced,
# development packages stay, and installed packages stay in place between builds.
editable() { [ "${LARDER_MODE:-}" = editable ]; }

# need PROGRAM PACKAGES: fails with the name of the Debian package if the program is missing.
need() {
  has "$1" || fail "$1 is not installed on this server: apt-get install $2"
}

prepare() {
  [ $# -ge 2 ] || fail "usage: bin/compile BUILD_DIR CACHE_DIR [ENV_DIR]"
  [ -d "$2" ] || mkdir -p "$2" || fail "cannot create the cache directory $2"
  BUILD_DIR=$(cd -- "$1" && pwd) || fail "cannot enter the build directory $1"
  CACHE_DIR=$(cd -- "$2" && pwd) || fail "cannot enter the cache directory $2"
  [ -z "${3:-}" ] || load_environment "$3"
  if [ "$BUILD_DIR" != /app ] && ! editable; then
    warn "This build runs in $BUILD_DIR, not in /app: the result may not work at another path."
  fi
  TMP=
  # The width at which tools break their lines.
  COLUMNS=400
  THOR_COLUMNS=400
  export COLUMNS THOR_COLUMNS
  # On a developer's machine, tools read the developer's own settings.
  if [ "$BUILD_DIR" = /app ] || ! editable; then HOME=$CACHE_DIR/home; fi
  [ -d "$HOME" ] || mkdir -p "$HOME"
  export HOME
  cd "$BUILD_DIR" || fail "cannot enter the build directory $BUILD_DIR"
  # Descriptor 4 is the build's output; `run` uses descriptor 1 for a pipe.
  exec 4>&1
}

# scratch: creates TMP.
scratch() {
  [ -z "$TMP" ] || return 0
  TMP=$(mktemp -d) || fail "cannot create a temporary directory"
  trap 'rm -rf "$TMP"' EXIT
}

# load_environment ENV_DIR: exports one variable per file, as on Heroku. Variables that change which programs run are skipped.
load_environment() {
  for _file in "$1"/*; do
    [ -f "$_file" ] || continue
    _name=${_file##*/}
    case $_name in
      *[!A-Za-z0-9_]* | [0-9]* | _* | BUILD_DIR | CACHE_DIR | TMP | TMPDIR | PATH | HOME | SHELL | ENV | BASH_ENV | IFS | PWD) continue ;;
      CDPATH | LD_* | GIT_* | LARDER_* | LC_ALL | PYTHONHOME | PYTHONPATH | VIRTUAL_ENV) continue ;;
    esac
    _value=
    while IFS= read -r _line || [ -n "$_line" ]; do
      _value="$_value${_value:+
}$_line"
    done <"$_file"
    export "$_name=$_value"
  done
}

# run COMMAND...: runs a command with indented output, copies the output to $TMP/output, and returns the command's status.
run() {
  scratch
  _status=$({ {
    "$@" 2>&1 3>&- 4>&- </dev/null
    echo $? >&3
  } | tee "$TMP/output" | sed -u 's/^/       /' >&4 3>&-; } 3>&1)
  return "${_status:-1}"
}

# must WHAT COMMAND...: runs the command as `run` does. If it fails, the build ends with "WHAT exited N" and the reason from its output.
must() {
  _what=$1
  shift
  run "$@" || {
    _status=$?
    _reason=$(reason)
    fail "$_what exited $_status${_reason:+: $_reason}"
  }
}

# reason [RULES]: prints the cause of failure in the output of the last run as one line, or nothing if no rule of the table matches.
# RULES limits the search to the rules of one group.
reason() {
  tail -c 1000000 "$TMP/output" | awk -v build_dir="$BUILD_DIR/" -f "$lib/plain.awk" >"$TMP/plain"
  _group=
  while IFS= read -r _rule; do
    case $_rule in
      '' | '#'*) continue ;;
      '['*) _group=$_rule; continue ;;
    esac
    [ -z "${1:-}" ] || [ "$_group" = "[$1]" ] || continue
    _found=$(sed -nE "$_rule;T;s/^[[:space:]]+//;s/[[:space:]]+\$//;/[^[:space:]:]/!d;p;q" "$TMP/plain" | cut -c1-240)
    if [ -n "$_found" ]; then
      printf '%s\n' "$_found"
      return
    fi
  done <"$lib/reasons"
}

# one_of FILE...: sets CHOSEN to the first file that exists, or to nothing. Warns about further files, which are not used.
one_of() {
  CHOSEN=
  for _file in "$@"; do
    [ -f "$_file" ] || continue
    if [ -z "$CHOSEN" ]; then
      CHOSEN=$_file
    else
      warn "The project has $CHOSEN and $_file; $CHOSEN is used. Remove the other file."
    fi
  done
}

# Installed packages may come from the cache only if the key covers all of their inputs. The key covers lock files, other named files,
# settings, programs, the machine, and these scripts. Packages from the project's own directories, and install scripts, can depend on
# any file of the project. A buildpack that finds one of them calls neither `restore` nor `keep`, and lets the tool install from its own
# download cache.

# cache_key SETTINGS WORD... -- FILE...: sets KEY. SETTINGS is an extended regular expression of the names of variables that the tool
# reads; files that do not exist are skipped. The identity of a program, which is one WORD, also differs between machines.
cache_key() {
  _settings=$1
  shift
  _words=
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    _words="$_words$1
"
    shift
  done
  [ $# = 0 ] || shift
  for _file in "$0" "$lib"/*; do set -- "$@" "$_file"; done
  # Each program costs a build about 2 ms. One program computes all digests, and none sorts the variables: a shell exports the same
  # variables in the same order.
  KEY=$({
    printf '%s\n%s' "$BUILD_DIR" "$_words"
    env -0 | grep -zE "^($_settings)"
  } | sha256sum -- - "$@" 2>/dev/null)
  # `restore` reads one line.
  set -f
  # shellcheck disable=SC2086 # words become lines of one
  set -- $KEY
  set +f
  KEY=$*
}

# identity PROGRAM: prints a word that changes when the program is replaced. Running the program for its version would take longer.
identity() { stat -Lc '%n:%s:%i:%Z' -- "$(command -v "$1")" 2>/dev/null || echo "$1"; }

# restore NAME DIRECTORY: moves the copy that was kept under KEY to DIRECTORY; fails if there is none. In a checkout, DIRECTORY itself is kept.
restore() {
  [ -f "$CACHE_DIR/$1/key" ] && IFS= read -r _key <"$CACHE_DIR/$1/key" && [ "$_key" = "$KEY" ] || return 1
  if editable; then
    [ -e "$2" ]
    return
  fi
  if [ -e "$2" ] || [ -L "$2" ]; then rm -rf "$2"; fi
  cp -a --reflink=auto "$CACHE_DIR/$1/tree" "$2"
}

# keep NAME DIRECTORY: keeps a copy of DIRECTORY under KEY. The key file is written last: a copy without it is not used.
keep() {
  mkdir -p "$CACHE_DIR/$1"
  forget "$1"
  if editable; then
    printf '%s\n' "$KEY" >"$CACHE_DIR/$1/key"
    return
  fi
  if cp -a --reflink=auto "$2" "$CACHE_DIR/$1/tree"; then
    printf '%s\n' "$KEY" >"$CACHE_DIR/$1/key"
  else
    rm -rf "$CACHE_DIR/$1/tree"
    warn "cannot keep $2 for the next build"
  fi
}

# forget NAME: removes the copy.
forget() { rm -rf "$CACHE_DIR/$1/key" "$CACHE_DIR/$1/tree"; }

# profile NAME TEXT: writes a script that every process sources when it starts. In TEXT, HOME is the directory of the application. The script of a
# checkout is outside of the checkout, and does not change HOME.
profile() {
  if editable && [ -n "${LARDER_PROFILE_DIR:-}" ]; then
    mkdir -p "$LARDER_PROFILE_DIR"
    printf '%s\n' "_larder_home=\$HOME HOME=\$LARDER_APP" "$2" "HOME=\$_larder_home" >"$LARDER_PROFILE_DIR/$1.sh"
    return
  fi
  [ -d .profile.d ] || mkdir -p .profile.d
  printf '%s\n' "$2" >".profile.d/$1.sh"
}

# export_for_next TEXT: adds shell assignments for the buildpacks that run after this one.
export_for_next() {
  if [ -n "${LARDER_EXPORT:-}" ]; then printf '%s\n' "$1" >>"$LARDER_EXPORT"; fi
}
