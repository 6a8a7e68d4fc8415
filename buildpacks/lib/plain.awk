# Prepares the output of a tool for the rules in `reasons`: removes colours and the build directory, and joins a line that ends in a colon
# with the next line, because only both together are a sentence.
{
  gsub(/\033\[[0-9;?]*[A-Za-z]/, "")
  # pnpm prints no-break spaces and thin spaces.
  gsub(/\302\240|\342\200\211/, " ")
  sub(/\r+$/, "")
  sub(/.*\r/, "")
  for (at = index($0, build_dir); at > 0; at = index($0, build_dir)) $0 = substr($0, 1, at - 1) substr($0, at + length(build_dir))
  if ($0 ~ /^[[:space:]]*$/) next
  lines[++count] = $0
}
END {
  for (number = 1; number <= count; number++) {
    line = lines[number]
    if (line ~ /:[[:space:]]*$/ && number < count) {
      next_line = lines[number + 1]
      sub(/^(npm (error|ERR!)|\[ERROR\]) /, "", next_line)
      sub(/^[[:space:]>|*-]+/, "", next_line)
      sub(/[[:space:]]+$/, "", line)
      line = line " " next_line
    }
    print line
  }
}
