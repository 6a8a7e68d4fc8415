# What detect and release scripts share: looks at files with the shell's own means, so that it costs no process.

# read_text FILE: its lines, joined by spaces, in TEXT; the first 2000 of them.
read_text() {
  TEXT=
  _lines=0
  while IFS= read -r _line || [ -n "$_line" ]; do
    TEXT="$TEXT$_line "
    _lines=$((_lines + 1))
    [ "$_lines" -lt 2000 ] || break
  done <"$1"
}

# has_script NAME: whether package.json, read into TEXT, has a script of that name; its text, as it stands between the quotes, is
# then in SCRIPT. A small reader of JSON strings: a script's text may contain braces, quotes and the names of other scripts.
has_script() {
  _rest=$TEXT
  # The key, and not a word in a list or a value: a colon and a brace come after it.
  while :; do
    case $_rest in *'"scripts"'*) ;; *) return 1 ;; esac
    _rest=${_rest#*'"scripts"'}
    _after=${_rest#"${_rest%%[![:space:]]*}"}
    case $_after in ':'*) _after=${_after#:} ;; *) continue ;; esac
    _after=${_after#"${_after%%[![:space:]]*}"}
    case $_after in '{'*) break ;; esac
  done
  _rest=${_after#'{'}
  _key=yes
  _found=no
  while :; do
    case $_rest in *'"'*) ;; *) return 1 ;; esac
    case ${_rest%%'"'*} in *'}'*) return 1 ;; esac
    _rest=${_rest#*'"'}
    _string=
    while :; do
      _part=${_rest%%'"'*}
      _rest=${_rest#*'"'}
      _string=$_string$_part
      # A quote after an odd number of backslashes belongs to the string.
      _odd=no
      while :; do
        case $_part in *\\) ;; *) break ;; esac
        _part=${_part%\\}
        if [ $_odd = no ]; then _odd=yes; else _odd=no; fi
      done
      [ $_odd = yes ] || break
      case $_rest in *'"'*) ;; *) return 1 ;; esac
      _string=$_string'"'
    done
    if [ $_key = yes ]; then
      [ "$_string" != "$1" ] || _found=yes
      _key=no
    else
      SCRIPT=$_string
      [ $_found = no ] || return 0
      _key=yes
    fi
  done
}

# frontend_only DIRECTORY: a package.json that starts nothing, beside pages or with a script that builds some: files to serve. One that
# static.json says how to serve is that in any case, but for a Procfile.
frontend_only() {
  [ -f "$1/package.json" ] && [ ! -f "$1/Procfile" ] || return 1
  [ ! -f "$1/static.json" ] || return 0
  [ ! -f "$1/server.js" ] || return 1
  read_text "$1/package.json"
  ! has_script start || return 1
  [ -f "$1/index.html" ] || [ -f "$1/public/index.html" ] || has_script build
}

# procfile_has TYPE DIRECTORY: whether the Procfile there names the process type.
procfile_has() {
  [ -f "$2/Procfile" ] || return 1
  while IFS= read -r _line || [ -n "$_line" ]; do
    case $_line in "$1:"* | "$1 :"*) return 0 ;; esac
  done <"$2/Procfile"
  return 1
}
