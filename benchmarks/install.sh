#!/bin/sh
# Installs what the contestants of the benchmarks need: `make bench` calls this from the project's root.
# What cannot be had is said and left out: the benchmark then names that contestant as missing.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
lacking=""

say() { printf '%s\n' "$*" >&2; }

# The group's packages one by one if not all together: one that does not build must not cost the others.
python_packages() {
    "$PYTHON" - <<'END'
import tomllib
print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["bench"]))
END
}
if ! "$PYTHON" -m pip install --quiet --disable-pip-version-check --group bench; then
    python_packages | while read -r package; do
        "$PYTHON" -m pip install --quiet --disable-pip-version-check "$package" || say "not installed: $package"
    done
fi

# Programs from Debian's packages, each on its own.
wanted=""
for pair in wrk:wrk nats-server:nats-server redis-server:redis-server rabbitmq-server:rabbitmq-server \
    node:nodejs npm:npm; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || wanted="$wanted ${pair##*:}"
done
if [ -n "$wanted" ]; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
        apt-get update -qq || say "apt-get update failed: trying with the lists at hand"
        for package in $wanted; do
            DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$package" >/dev/null ||
                lacking="$lacking $package"
        done
        # Debian starts what it installs. The benchmarks start servers of their own, each with its data elsewhere.
        [ ! -d /run/systemd/system ] || case "$wanted" in
            *-server*) say "Debian may have started services that no benchmark uses: systemctl disable --now NAME" ;;
        esac
    else
        lacking="$wanted"
    fi
fi
[ -z "$lacking" ] || say "not installed: as root, apt-get install$lacking"

# Moleculer, into a node_modules that git ignores, in the versions of the lock file.
moleculer=benchmarks/peers/moleculer
if command -v npm >/dev/null 2>&1; then
    stamp=$moleculer/node_modules/.package-lock.json
    if [ ! -e "$stamp" ] || [ "$moleculer/package-lock.json" -nt "$stamp" ]; then
        npm ci --prefix "$moleculer" --no-audit --no-fund --silent ||
            npm install --prefix "$moleculer" --no-audit --no-fund --silent --no-save ||
            say "not installed: npm ci --prefix $moleculer"
    fi
else
    say "not installed: Moleculer needs npm"
fi
exit 0
