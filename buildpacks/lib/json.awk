# Prints the members of a JSON object, one per line: the path with tabs between its keys, a tab, and the value. Strings are printed without
# their quotes and with their escapes. An object or a list is printed as { or [ before its members. Only two levels are printed. Invalid
# JSON ends with status 1. No value contains a tab or a line break, because JSON strings contain them only as escapes.
BEGIN {
  depth = 0
  # expect: value, key, colon, comma, end; first: an empty object or list may close.
  expect = "value"
  string = "^\"([^\"\\\\\t]|\\\\[\"\\\\/bfnrtu])*\""
  scalar = "^(-?[0-9][0-9.eE+-]*|true|false|null)"
}
function bad() {
  failed = 1
  exit 1
}
function show(value,    path, level) {
  if (depth == 0 || depth > 2 || kind[1] == "[" || kind[depth] == "[") return
  path = key[1]
  for (level = 2; level <= depth; level++) path = path "\t" key[level]
  print path "\t" value
}
function done_value() { expect = depth == 0 ? "end" : "comma" }
function plain_key(text,    out, code) {
  if (index(text, "\\") == 0) return text
  out = ""
  while (match(text, /\\u00[2-7][0-9a-fA-F]/)) {
    code = index("0123456789abcdef", tolower(substr(text, RSTART + 4, 1))) - 1
    code = code * 16 + index("0123456789abcdef", tolower(substr(text, RSTART + 5, 1))) - 1
    out = out substr(text, 1, RSTART - 1) sprintf("%c", code)
    text = substr(text, RSTART + 6)
  }
  return out text
}
NR == 1 { sub(/^\357\273\277/, "") }
{
  rest = $0
  sub(/\r$/, "", rest)
  while (1) {
    sub(/^[ \t]+/, "", rest)
    if (rest == "") break
    first = substr(rest, 1, 1)
    if (expect == "value") {
      if (first == "{" || first == "[") {
        show(first)
        kind[++depth] = first
        key[depth] = ""
        expect = first == "{" ? "key" : "value"
        may_close = 1
        rest = substr(rest, 2)
        continue
      }
      if (first == "]" && may_close && kind[depth] == "[") {
        depth--
        done_value()
        may_close = 0
        rest = substr(rest, 2)
        continue
      }
      if (first == "\"") {
        if (!match(rest, string)) bad()
        show(substr(rest, 2, RLENGTH - 2))
      } else {
        if (!match(rest, scalar)) bad()
        show(substr(rest, 1, RLENGTH))
      }
      rest = substr(rest, RLENGTH + 1)
      may_close = 0
      done_value()
    } else if (expect == "key") {
      if (first == "}" && may_close) {
        depth--
        done_value()
        rest = substr(rest, 2)
      } else {
        if (!match(rest, string)) bad()
        text = substr(rest, 2, RLENGTH - 2)
        rest = substr(rest, RLENGTH + 1)
        key[depth] = plain_key(text)
        expect = "colon"
      }
      may_close = 0
    } else if (expect == "colon") {
      if (first != ":") bad()
      rest = substr(rest, 2)
      expect = "value"
    } else if (expect == "comma") {
      if (first == ",") expect = kind[depth] == "{" ? "key" : "value"
      else if (first == (kind[depth] == "{" ? "}" : "]")) { depth--; done_value() }
      else bad()
      rest = substr(rest, 2)
    } else bad()
  }
}
END { if (failed || expect != "end") exit 1 }
