# Functions that install the packages of a Node project, for the buildpacks node and static. Sourced after common.sh and look.sh.

# node_prepare: reads package.json and chooses the package manager. Call it before running a script of package.json.
node_prepare() {
  need node nodejs
  NODE_VERSION=$(node --version)
  read_package package.json

  npm_config_cache=$CACHE_DIR/npm
  npm_config_fund=false
  npm_config_audit=false
  npm_config_update_notifier=false
  npm_config_progress=false
  COREPACK_HOME=$CACHE_DIR/corepack
  COREPACK_ENABLE_DOWNLOAD_PROMPT=0
  # Without packageManager in package.json, corepack uses its built-in version, not the newest version.
  COREPACK_DEFAULT_TO_LATEST=0
  export npm_config_cache npm_config_fund npm_config_audit npm_config_update_notifier npm_config_progress
  export COREPACK_HOME COREPACK_ENABLE_DOWNLOAD_PROMPT COREPACK_DEFAULT_TO_LATEST

  node_tool
  info "node $NODE_VERSION, $TOOL"
  node_wanted
  case $PROGRAM in corepack*) node_corepack_registry ;; esac
  case $TOOL in
    pnpm)
      # Variables are used, because not every command of pnpm has these options. pnpm would also reuse what install scripts made of another state
      # of the project. pnpm 11 reads the second spelling only.
      npm_config_store_dir=$CACHE_DIR/pnpm
      npm_config_side_effects_cache=false
      pnpm_config_store_dir=$CACHE_DIR/pnpm
      pnpm_config_side_effects_cache=false
      export npm_config_store_dir npm_config_side_effects_cache pnpm_config_store_dir pnpm_config_side_effects_cache
      ;;
    yarn1)
      YARN_CACHE_FOLDER=$CACHE_DIR/yarn
      export YARN_CACHE_FOLDER
      ;;
    yarn)
      # With node_modules, the packages are part of the release. Otherwise they would be in a cache that processes cannot read.
      YARN_NODE_LINKER=${YARN_NODE_LINKER:-node-modules}
      export YARN_NODE_LINKER
      ;;
  esac
}

# node_corepack_registry: sets the registry of corepack to that of npm, whose settings corepack does not read. If npm is configured for a
# mirror, the public registry is probably unreachable for pnpm and yarn, too.
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

# node_wanted: warns if package.json requests another version of node. Text that is not a range of versions is ignored.
node_wanted() {
  member engines node || return 0
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
  [ -z "$_wanted" ] || warn "The project requests node $_wanted, but this server has $NODE_VERSION."
}

# node_tool: sets TOOL, LOCK and PROGRAM by the lock files that exist. If there are several, packageManager in package.json decides.
node_tool() {
  _manager=
  if member packageManager; then _manager=${VALUE%%+*}; fi
  case $_manager in
    npm@*) one_of npm-shrinkwrap.json package-lock.json pnpm-lock.yaml yarn.lock ;;
    yarn@*) one_of yarn.lock pnpm-lock.yaml npm-shrinkwrap.json package-lock.json ;;
    *) one_of pnpm-lock.yaml yarn.lock npm-shrinkwrap.json package-lock.json ;;
  esac
  LOCK=$CHOSEN
  case $LOCK in
    pnpm-lock.yaml) TOOL=pnpm ;;
    yarn.lock)
      TOOL=yarn1
      if [ -f .yarnrc.yml ]; then TOOL=yarn; fi
      case $_manager in yarn@[2-9]*) TOOL=yarn ;; esac
      ;;
    *) TOOL=npm ;;
  esac
  for _file in bun.lock bun.lockb deno.lock; do
    if [ -f "$_file" ]; then warn "$_file is not used: this buildpack installs with npm, pnpm or yarn."; fi
  done
  _version=
  case $_manager in
    '' | "${TOOL%1}@"*) _version=${_manager#*@} ;;
    *) warn "package.json names $_manager in packageManager, but the project has no lock file of $_manager: ${TOOL%1} installs${LOCK:+ from $LOCK}." ;;
  esac
  node_program "${TOOL%1}" "$_version"
}

# node_program NAME VERSION: sets PROGRAM to the command of the package manager: the server's own if it has the version that packageManager
# names, else corepack, which downloads that version.
node_program() {
  PROGRAM=
  for _name in "$1" "$1pkg"; do
    if has "$_name"; then PROGRAM=$_name; break; fi
  done
  case $1 in
    npm) [ -n "$PROGRAM" ] || need npm npm ;;
  esac
  if [ -n "$2" ] && [ -n "$PROGRAM" ]; then
    # Not in the project, where a shim of corepack and yarn itself would read package.json.
    _have=$(cd / && "$PROGRAM" --version 2>/dev/null) || _have=
    case $_have in
      "$2" | "$2".*) return 0 ;;
    esac
    case $1 in
      npm) _corepack=no ;;
      *) case $2 in [0-9]*.[0-9]*.[0-9]*) _corepack=yes ;; *) _corepack=no ;; esac ;;
    esac
    if [ $_corepack = yes ] && has corepack; then
      PROGRAM="corepack $1"
    else
      warn "package.json names $1 $2 in packageManager, but this server has $1 ${_have:-of an unknown version}."
    fi
  elif [ -z "$PROGRAM" ]; then
    has corepack || fail "$1 is not installed on this server: npm install --global $1, or install corepack"
    PROGRAM="corepack $1"
  fi
}

# node_install: installs the packages of package.json in node_modules, including the development packages.
node_install() {
  if [ -d node_modules ] && [ -z "$LOCK" ]; then
    info "node_modules is part of the source and is used unchanged"
    return
  fi
  if ! node_has_dependencies; then
    info "package.json names no packages"
    return
  fi
  case $TOOL in
    npm) node_install_npm ;;
    # With CI, pnpm and yarn ask no questions. Scripts of the project do not get CI, because many would treat warnings as errors.
    pnpm) must "pnpm install" env CI="${CI:-true}" $PROGRAM install --frozen-lockfile --prod=false ;;
    yarn1) node_install_yarn1 ;;
    yarn) must "yarn install" env CI="${CI:-true}" $PROGRAM install --immutable ;;
  esac
}

# node_key: sets KEY for node_modules, if node_modules is the whole result of the installation and contains no files of the project.
node_key() {
  [ -n "$LOCK" ] && [ ! -f pnpm-workspace.yaml ] && ! member workspaces && ! node_has_install_scripts || return 1
  cache_key '(npm|NPM|yarn|YARN)_[A-Za-z]|NODE_' "$NODE_VERSION" "$(identity node)" "$(identity "${PROGRAM#corepack }")" -- \
    package.json "$LOCK" .npmrc .yarnrc
}

# Install scripts of packages can read the project, as `prisma generate` does, so they run in every build. The cache keeps the tree without
# their results.
node_install_npm() {
  if [ -z "$LOCK" ]; then
    warn "There is no package-lock.json: versions can change between builds. Commit a lock file (`npm install` creates it)."
    must "npm install" npm install --include=dev --no-audit --no-fund --no-package-lock
    return
  fi
  if editable; then
    # `npm ci` would delete the packages that a person has changed or linked.
    if node_key && restore node_modules node_modules; then
      info "$LOCK is unchanged"
    else
      must "npm install" npm install --include=dev --no-audit --no-fund
      if node_key; then keep node_modules node_modules; fi
    fi
    return
  fi
  if grep -qE '"link": *true|": *"file:' "$LOCK" || ! node_key; then
    must "npm ci" npm ci --include=dev --no-audit --no-fund
    return
  fi
  if restore node_modules node_modules; then
    info "$LOCK is unchanged: node_modules restored"
  else
    must "npm ci" npm ci --include=dev --no-audit --no-fund --ignore-scripts
    [ ! -d node_modules ] || keep node_modules node_modules
  fi
  # The first version of the lock file does not record which packages have scripts.
  if [ -d node_modules ] && grep -qE '"hasInstallScript": *true|"lockfileVersion": *1\b' "$LOCK"; then
    # Optional packages may fail, which only a complete installation tolerates.
    run npm rebuild --no-audit --no-fund || {
      forget node_modules
      must "npm ci" npm ci --include=dev --no-audit --no-fund
    }
  fi
}

# A yarn.lock does not record which packages have install scripts, and yarn 1 cannot run the scripts in a restored tree. Therefore a tree
# with such a package is not kept.
node_install_yarn1() {
  _kept=no
  if [ "$(grep -c '^  version ' "$LOCK")" = "$(grep -cE '^  resolved "(git\+)?(https?|ssh)://' "$LOCK")" ] && node_key; then
    _kept=yes
    if restore node_modules node_modules; then
      info "$LOCK is unchanged: node_modules restored"
      return
    fi
  fi
  must "yarn install" $PROGRAM install --frozen-lockfile --production=false --non-interactive
  if [ $_kept = yes ] && [ -d node_modules ] && ! node_tree_has_scripts; then keep node_modules node_modules; fi
}

node_tree_has_scripts() {
  [ -z "$(find node_modules -name binding.gyp -print -quit)" ] || return 0
  find node_modules -name package.json -type f -print0 | xargs -0 -r grep -lE '"(pre|post)?install"[[:space:]]*:' | grep -q .
}

node_has_dependencies() {
  [ -z "$LOCK" ] || return 0
  member dependencies || member devDependencies || member optionalDependencies || member workspaces || node_has_install_scripts
}

node_has_install_scripts() {
  script preinstall || script install || script postinstall || script prepare
}

# node_script NAME: runs that script of package.json; fails if there is none.
node_script() {
  script "$1" || return 1
  title "npm script $1"
  case $TOOL in
    npm) must "the script $1 of package.json" npm run --silent "$1" ;;
    *) must "the script $1 of package.json" $PROGRAM run "$1" ;;
  esac
}

# From version 2 on, the lock file marks development packages. Removing the marked packages takes a fraction of the time of `npm prune`,
# which computes the tree of packages again.
node_prune_npm() {
  if [ -z "$LOCK" ] || ! grep -qE '"lockfileVersion": *[23]\b' "$LOCK"; then
    must "npm prune" npm prune --omit=dev --ignore-scripts --no-audit --no-fund --no-package-lock
    return
  fi
  # shellcheck disable=SC2016 # JavaScript's
  must "removing development packages" node -e '
    const fs = require("fs");
    let count = 0;
    for (const [path, entry] of Object.entries(JSON.parse(fs.readFileSync(process.argv[1], "utf8")).packages || {})) {
      const parts = path.split("/");
      if (!entry.dev || !parts.includes("node_modules") || parts.includes("..") || path.startsWith("/")) continue;
      fs.rmSync(path, { recursive: true, force: true });
      count++;
    }
    console.log("removed " + count + " packages");
  ' "$LOCK"
  # Removes links to programs of removed packages, and empty scopes.
  find node_modules -path '*/.bin/*' -xtype l -delete
  find node_modules -maxdepth 1 -name '@*' -type d -empty -delete
}

# node_prune: removes the development packages, unless the settings of npm or yarn keep them.
node_prune() {
  if [ "${NPM_CONFIG_PRODUCTION:-}" = false ] || [ "${YARN_PRODUCTION:-}" = false ]; then return 0; fi
  member devDependencies || [ -f pnpm-workspace.yaml ] || return 0
  [ -d node_modules ] || return 0
  title "Removing development packages"
  case $TOOL in
    npm) node_prune_npm ;;
    # `pnpm prune` in a workspace would also remove the packages of its members. Without the age, removed packages stay in
    # node_modules/.pnpm.
    pnpm)
      must "pnpm install --prod" env CI="${CI:-true}" npm_config_modules_cache_max_age=0 pnpm_config_modules_cache_max_age=0 \
        $PROGRAM install --prod --frozen-lockfile --prefer-offline --ignore-scripts
      ;;
    yarn1) must "yarn install --production" $PROGRAM install --production --ignore-scripts --frozen-lockfile --prefer-offline --non-interactive ;;
    yarn) run $PROGRAM workspaces focus --all --production || warn "This yarn cannot remove development packages; they stay." ;;
  esac
  # Removes notes of the package managers, which contain times and are not used by processes.
  rm -f node_modules/.package-lock.json node_modules/.yarn-integrity node_modules/.modules.yaml
}
