# Installing a Node project's packages: for the buildpacks node and static. Sourced after common.sh and look.sh.

# node_prepare: what is needed before the first script of package.json runs.
node_prepare() {
  need node nodejs
  NODE_VERSION=$(node --version)
  read_text package.json
  PACKAGE_JSON=$TEXT
  node_tool
  info "node $NODE_VERSION, $TOOL"
  node_wanted

  npm_config_cache=$CACHE_DIR/npm
  npm_config_fund=false
  npm_config_audit=false
  npm_config_update_notifier=false
  npm_config_progress=false
  COREPACK_HOME=$CACHE_DIR/corepack
  COREPACK_ENABLE_DOWNLOAD_PROMPT=0
  # The version that corepack knows, where package.json names none: not whatever is newest today.
  COREPACK_DEFAULT_TO_LATEST=0
  export npm_config_cache npm_config_fund npm_config_audit npm_config_update_notifier npm_config_progress
  export COREPACK_HOME COREPACK_ENABLE_DOWNLOAD_PROMPT COREPACK_DEFAULT_TO_LATEST
  case "${PNPM:-} ${YARN:-}" in *corepack*) node_corepack_registry ;; esac
  case $TOOL in
    yarn1)
      YARN_CACHE_FOLDER=$CACHE_DIR/yarn
      export YARN_CACHE_FOLDER
      ;;
    yarn)
      # Without node_modules, what is installed would be in a cache that no process sees.
      YARN_NODE_LINKER=${YARN_NODE_LINKER:-node-modules}
      export YARN_NODE_LINKER
      ;;
  esac
}

# node_corepack_registry: corepack does not read npm's settings. Where npm is configured for another registry than the public one, the
# public one is most likely out of reach, for pnpm and yarn themselves too.
node_corepack_registry() {
  [ -z "${COREPACK_NPM_REGISTRY:-}" ] || return 0
  _registry=${npm_config_registry:-${NPM_CONFIG_REGISTRY:-}}
  if has npm; then _registry=$(npm config get registry 2>/dev/null) || return 0; fi
  case $_registry in
    https://registry.npmjs.org | https://registry.npmjs.org/) ;;
    http://* | https://*)
      COREPACK_NPM_REGISTRY=${_registry%/}
      export COREPACK_NPM_REGISTRY
      ;;
  esac
}

# node_wanted: says so if package.json asks for another version of node. What cannot be read as a range asks for nothing.
node_wanted() {
  case $PACKAGE_JSON in *'"engines"'*) ;; *) return 0 ;; esac
  # shellcheck disable=SC2016 # JavaScript's
  _wanted=$(node -e '
    const wanted = String((JSON.parse(require("fs").readFileSync("package.json", "utf8")).engines || {}).node || "");
    const have = process.argv[1].replace(/^v/, "").split(".").map(Number);
    const order = (a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2];
    const next = (at, i) => at.map((n, j) => (j < i ? n : j === i ? n + 1 : 0));
    const fits = (text) => {
      const found = /^(\^|~|>=|<=|>|<|=|)v?(\d+|[xX*])(?:\.(\d+|[xX*]))?(?:\.(\d+|[xX*]))?$/.exec(text);
      if (!found) throw new Error(text);
      const given = [];
      for (const n of found.slice(2)) { if (!/^\d+$/.test(n || "")) break; given.push(Number(n)); }
      if (given.length === 0) return true;
      const low = [...given, 0, 0].slice(0, 3), last = given.length - 1, high = next(low, last);
      const first = given.findIndex((n) => n > 0);
      switch (found[1]) {
        case ">=": return order(have, low) >= 0;
        case ">": return order(have, high) >= 0;
        case "<=": return order(have, high) < 0;
        case "<": return order(have, low) < 0;
        case "^": return order(have, low) >= 0 && order(have, next(low, first < 0 ? last : first)) < 0;
        case "~": return order(have, low) >= 0 && order(have, next(low, Math.min(last, 1))) < 0;
        default: return order(have, low) >= 0 && order(have, high) < 0;
      }
    };
    const plain = (part) => part.replace(/(\S+)\s+-\s+(\S+)/g, ">=$1 <=$2").replace(/([<>=~^])\s+/g, "$1").trim();
    const ranges = wanted.split("||").map((part) => plain(part).split(/\s+/).filter(Boolean));
    if (!ranges.some((range) => range.every(fits))) console.log(wanted.replace(/[^ -~]/g, "").slice(0, 80));
  ' "$NODE_VERSION" 2>/dev/null) || return 0
  [ -z "$_wanted" ] || warn "The project asks for node $_wanted; this server has $NODE_VERSION."
}

# node_install: the packages of package.json, the development ones included, in node_modules.
node_install() {
  if [ -d node_modules ] && [ -z "$LOCK" ]; then
    info "node_modules is part of the source: used as it is"
    return
  fi
  if ! node_has_dependencies && [ "$TOOL" = npm ]; then
    info "package.json names no packages"
    return
  fi

  # The same packages as last time need no installation; but install scripts of the project itself must run each time.
  _key=
  if [ -n "$LOCK" ] && node_is_plain; then
    _key="$NODE_VERSION $TOOL $(uname -m) $BUILD_DIR $(digest package.json "$LOCK" .npmrc .yarnrc .yarnrc.yml pnpm-workspace.yaml)"
    if same_key node_modules "$_key"; then
      restore node_modules node_modules && info "$LOCK is the same as last time: node_modules restored" && return
    fi
  fi
  case $TOOL in
    npm)
      if [ -n "$LOCK" ]; then
        must "npm ci" npm ci --include=dev --no-audit --no-fund
      else
        warn "There is no package-lock.json: versions may change from build to build. Commit one (npm install makes it)."
        must "npm install" npm install --include=dev --no-audit --no-fund --no-package-lock
      fi
      ;;
    # Without CI these two ask questions, but a project's own scripts may take it for something else: for them, warnings are errors then.
    pnpm) must "pnpm install" env CI="${CI:-true}" $PNPM install --frozen-lockfile --prod=false --store-dir "$CACHE_DIR/pnpm" ;;
    yarn1) must "yarn install" $YARN install --frozen-lockfile --production=false --non-interactive ;;
    yarn) must "yarn install" env CI="${CI:-true}" $YARN install --immutable ;;
  esac
  if [ -n "$_key" ] && [ -d node_modules ]; then keep node_modules "$_key" node_modules; fi
}

# TOOL and LOCK, by the lock file that is there.
node_tool() {
  LOCK=
  TOOL=npm
  if [ -f pnpm-lock.yaml ]; then
    LOCK=pnpm-lock.yaml TOOL=pnpm
    if has pnpm; then PNPM=pnpm; elif has corepack; then PNPM="corepack pnpm"; else
      fail "pnpm is not installed on this server: npm install --global pnpm, or corepack"
    fi
  elif [ -f yarn.lock ]; then
    LOCK=yarn.lock TOOL=yarn1
    if has yarn; then YARN=yarn; elif has yarnpkg; then YARN=yarnpkg; elif has corepack; then YARN="corepack yarn"; else
      fail "yarn is not installed on this server: apt-get install yarnpkg, or npm install --global yarn"
    fi
    if [ -f .yarnrc.yml ]; then TOOL=yarn; fi
    case $PACKAGE_JSON in *'"yarn@'[2-9]*) TOOL=yarn ;; esac
  else
    need npm npm
    for _lock in npm-shrinkwrap.json package-lock.json; do
      if [ -f "$_lock" ]; then LOCK=$_lock; break; fi
    done
  fi
}

node_has_dependencies() {
  [ -n "$LOCK" ] && return
  case $PACKAGE_JSON in
    *'"dependencies"'* | *'"devDependencies"'* | *'"optionalDependencies"'* | *'"workspaces"'*) return 0 ;;
  esac
  TEXT=$PACKAGE_JSON
  node_has_install_scripts
}

node_has_install_scripts() {
  has_script preinstall || has_script install || has_script postinstall || has_script prepare
}

# Whether node_modules alone is the result of an installation.
node_is_plain() {
  [ "$TOOL" != yarn ] && [ ! -f pnpm-workspace.yaml ] || return 1
  case $PACKAGE_JSON in *'"workspaces"'*) return 1 ;; esac
  TEXT=$PACKAGE_JSON
  ! node_has_install_scripts
}

# node_script NAME: runs it if package.json has it; says whether it was there.
node_script() {
  TEXT=$PACKAGE_JSON
  has_script "$1" || return 1
  title "npm script $1"
  case $TOOL in
    npm) must "the script $1 of package.json" npm run --silent "$1" ;;
    pnpm) must "the script $1 of package.json" $PNPM run "$1" ;;
    *) must "the script $1 of package.json" $YARN run "$1" ;;
  esac
}

# node_prune: takes the development packages away, unless the project says by npm's or yarn's own word that it needs them.
node_prune() {
  if [ "${NPM_CONFIG_PRODUCTION:-}" = false ] || [ "${YARN_PRODUCTION:-}" = false ]; then return 0; fi
  case $PACKAGE_JSON in *'"devDependencies"'*) ;; *) return 0 ;; esac
  [ -d node_modules ] || return 0
  title "Removing development packages"
  case $TOOL in
    npm) must "npm prune" npm prune --omit=dev --ignore-scripts --no-audit --no-fund --no-package-lock ;;
    pnpm) must "pnpm prune" env CI="${CI:-true}" $PNPM prune --prod --ignore-scripts --store-dir "$CACHE_DIR/pnpm" ;;
    yarn1) must "yarn install --production" $YARN install --production --ignore-scripts --frozen-lockfile --prefer-offline --non-interactive ;;
    yarn) run $YARN workspaces focus --all --production || warn "This yarn cannot remove development packages; they stay." ;;
  esac
  # A note of npm with times in it; nothing reads it in a release.
  rm -f node_modules/.package-lock.json node_modules/.yarn-integrity node_modules/.modules.yaml
}
