# What every compile script of larder's own buildpacks shares. Sourced, never run; plain POSIX sh.
#
# After `prepare "$@"`: BUILD_DIR and CACHE_DIR are absolute, configuration is in the environment, and HOME is a place where tools
# may leave their litter. After `scratch` or `run` there is TMP, which is removed at the end. What needs no tool starts none.

LC_ALL=C.UTF-8
export LC_ALL

# Times inside generated files: the same source gives the same bytes.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-315532800}
export SOURCE_DATE_EPOCH

title() { printf '%s %s\n' '----->' "$*"; }
info() { printf '       %s\n' "$*"; }
warn() { printf ' !     %s\n' "$*"; }

# The last such line is the reason that larder puts into git's own rejected line.
fail() {
  printf ' !     %s\n' "$*"
  exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

# need PROGRAM PACKAGE: says which Debian package is missing.
need() {
  has "$1" || fail "$1 is not installed on this server: apt-get install $2"
}

prepare() {
  [ $# -ge 2 ] || fail "usage: bin/compile BUILD_DIR CACHE_DIR [ENV_DIR]"
  [ -d "$2" ] || mkdir -p "$2" || fail "the cache directory $2 cannot be made"
  BUILD_DIR=$(cd -- "$1" && pwd) || fail "there is no directory $1"
  CACHE_DIR=$(cd -- "$2" && pwd) || fail "there is no directory $2"
  [ -z "${3:-}" ] || load_environment "$3"
  if [ "$BUILD_DIR" != /app ]; then
    warn "This build runs in $BUILD_DIR, not in /app: its result may not work at another path."
  fi
  TMP=
  HOME=$CACHE_DIR/home
  [ -d "$HOME" ] || mkdir -p "$HOME"
  export HOME
  cd "$BUILD_DIR" || fail "there is no directory $BUILD_DIR"
  # Output of tools passes a pipe; 4 is where it goes.
  exec 4>&1
}

# scratch: makes TMP.
scratch() {
  [ -z "$TMP" ] || return 0
  TMP=$(mktemp -d) || fail "no temporary directory can be made"
  trap 'rm -rf "$TMP"' EXIT
}

# Heroku's ENV_DIR: one file per variable. Those that would change which programs run, or how, stay outside.
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

# run COMMAND...: indented output, a copy of it in $TMP/output, the command's own status.
run() {
  scratch
  _status=$({ {
    "$@" 2>&1 3>&- 4>&- </dev/null
    echo $? >&3
  } | tee "$TMP/output" | sed -u 's/^/       /' >&4 3>&-; } 3>&1)
  return "${_status:-1}"
}

# must WHAT COMMAND...: as run, or the build ends with "WHAT exited N" and what the output says about it.
must() {
  _what=$1
  shift
  run "$@" || {
    _status=$?
    _why=$(why)
    fail "$_what exited $_status${_why:+: $_why}"
  }
}

# unreachable: says which host the last run could not reach, if any.
unreachable() {
  _host=$(sed -n \
    -e 's/.*getaddrinfo \(ENOTFOUND\|EAI_AGAIN\) \([A-Za-z0-9.-]*\).*/\2/p' \
    -e 's/.*getaddrinfo for \([A-Za-z0-9.-]*\) failed.*/\1/p' \
    -e 's/.*Could not resolve host: \([A-Za-z0-9.-]*\).*/\1/p' \
    -e 's/.*Could not reach host \([A-Za-z0-9.-]*[A-Za-z0-9]\).*/\1/p' \
    -e 's/.*Unknown host \([A-Za-z0-9.-]*\).*/\1/p' \
    -e 's/.*UnknownHostException: \([A-Za-z0-9.-]*\).*/\1/p' \
    -e 's/.*lookup \([A-Za-z0-9.-]*\) on [^ ]*: no such host.*/\1/p' \
    -e "s/.*HTTPSConnection(host='\([A-Za-z0-9.-]*\)'.*Name or service not known.*/\1/p" "$TMP/output" | head -n 1)
  [ -z "$_host" ] || echo "$_host cannot be reached from this server"
}

# why: the cause that the last run's output names, as one short line; nothing where it names none. First a host that could not be
# reached, because what tools say after that is a consequence; then the first line that its tool marked as an error.
why() {
  _why=$(unreachable)
  if [ -n "$_why" ]; then
    echo "$_why"
    return
  fi
  sed -e "s/$(printf '\033')\[[0-9;]*[A-Za-z]//g" "$TMP/output" | sed -n \
    -e '/^npm \(error\|ERR!\) \(code\|errno\|syscall\|path\|command\|type\|cwd\|workspace\|location\|A complete log\|Exit handler\)/d' \
    -e 's/^npm \(error\|ERR!\) \([^ ].*\)/\2/p' \
    -e 's/^Error: No compatible signature found in package metadata.*/the registry gives no signatures, which corepack asks for: put the hash into packageManager (corepack use does), or set COREPACK_INTEGRITY_KEYS=0/p' \
    -e '/([0-9,]*): error TS[0-9]*: /p' \
    -e 's/^[^ ]*sh: \(line \)\{0,1\}[0-9]*:\{0,1\} *\(.*not found\)$/\2/p' \
    -e 's/^ *\([A-Za-z.]*\(Error\|Exception\): .*\)/\1/p' \
    -e 's/^\[ERROR\] *\([^ ].*\)/\1/p' \
    -e 's/^ *\(error\|ERROR\|fatal\|FATAL\|Error\)\( [A-Z]*[0-9]*\)\{0,1\}: *\([^ ].*\)/\3/p' | head -n 1 | sed "s|$BUILD_DIR/||g" | cut -c1-160
}

# same_key NAME TEXT: whether the cache's part NAME was made from TEXT.
same_key() {
  [ -f "$CACHE_DIR/$1/key" ] || return 1
  _key=
  while IFS= read -r _line || [ -n "$_line" ]; do _key="$_key${_key:+
}$_line"; done <"$CACHE_DIR/$1/key"
  [ "$_key" = "$2" ]
}

# restore NAME DIRECTORY: the kept copy becomes DIRECTORY.
restore() {
  rm -rf "$2"
  cp -a --reflink=auto "$CACHE_DIR/$1/tree" "$2"
}

# keep NAME TEXT DIRECTORY: a copy of DIRECTORY under the key TEXT. The key comes last: without it the copy does not count.
keep() {
  mkdir -p "$CACHE_DIR/$1"
  rm -rf "$CACHE_DIR/$1/key" "$CACHE_DIR/$1/tree"
  if cp -a --reflink=auto "$3" "$CACHE_DIR/$1/tree"; then
    printf '%s\n' "$2" >"$CACHE_DIR/$1/key"
  else
    rm -rf "$CACHE_DIR/$1/tree"
    warn "$3 could not be kept for the next build."
  fi
}

# digest FILE...: one word for the contents of those that exist.
digest() {
  for _file in "$@"; do
    [ -f "$_file" ] && sha256sum <"$_file"
  done | sha256sum | cut -c1-64
}

# profile NAME TEXT: a script that every process sources at its start.
profile() {
  mkdir -p .profile.d
  printf '%s\n' "$2" >".profile.d/$1.sh"
}

# export_for_next TEXT: what the next buildpack finds in its environment.
export_for_next() {
  if [ -n "${LARDER_EXPORT:-}" ]; then printf '%s\n' "$1" >>"$LARDER_EXPORT"; fi
}
