#!/usr/bin/env bash
# Sets up what the tests need, builds everything and runs every test.
#
# Needs Rust (https://rustup.rs) and a C compiler. On Debian and Ubuntu, as root, it installs what is missing:
#   build-essential        a linker, for a machine that has only Rust
#   mesa-vulkan-drivers    Vulkan on the CPU, for tests that run the sampler and a training step through wgpu
#   libopenmpi-dev, openmpi-bin, libclang-dev
#                          Open MPI and what its bindings need, for training in several processes
#   chromium               the browser in which the page is tested
#   nodejs, npm            Node 20 or later, for tests of the npm package; npm downloads bundlers, Next.js and TypeScript
#                          (600 MB) into the target folder
# It also installs the target wasm32-unknown-unknown with rustup. Without a Vulkan driver, tests of wgpu are skipped and
# say so, as are those of several processes without an MPI library; without a browser or npm, their tests fail.
#
# CCM_FIXTURES is the folder of reference values, by default ../shared/fixtures beside the repository. MNIST is expected
# in ../data/mnist beside that folder.
set -euo pipefail
cd "$(dirname "$0")/.."

missing() { # prints the packages that are not installed
    for package in "$@"; do
        dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
    done
}
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    packages=$(
        command -v cc >/dev/null || missing build-essential
        missing mesa-vulkan-drivers chromium libopenmpi-dev openmpi-bin libclang-dev
        command -v node >/dev/null || missing nodejs
        command -v npm >/dev/null || missing npm
    )
    if [ -n "$packages" ]; then
        echo "installing: $packages"
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
    fi
else
    echo "not root on Debian or Ubuntu: a C compiler, a Vulkan driver, chromium, node and npm must be installed"
fi

# Debian 12 has Node 18; npm installs a newer version.
if [ "$(node --version | sed 's/^v\([0-9]*\).*/\1/')" -lt 20 ]; then
    newer="${CARGO_TARGET_DIR:-target}/tmp/node"
    mkdir -p "$newer"
    newer=$(cd "$newer" && pwd)
    echo "installing: node 22 from npm"
    npm install --silent --no-audit --no-fund --prefix "$newer" node@22
    export PATH="$newer/node_modules/node/bin:$PATH"
fi

if cargo fmt --version >/dev/null 2>&1; then cargo fmt --all --check; fi
# Both commands use the same features, so Burn is compiled once. The program has the profile of its users; the tests add
# overflow checks.
if command -v mpicc >/dev/null; then
    features=ccm-tests/mpi
else
    echo "SKIPPED: no MPI library (mpicc): tests of several processes"
    features=
fi
cargo build --workspace --bins --benches --features "$features"
cargo test --workspace --features "$features"
