#!/bin/sh
# Ranks the Lee news set (gensim's test data) with each precision: see operators/tests/ranking.rs.
set -eu
cd "$(dirname "$0")/../.."
data="${TMPDIR:-/tmp}/headwater-lee"
if [ ! -f "$data/lee.cor" ]; then
    mkdir -p "$data/wheel"
    python3 -m pip download --quiet --no-deps --dest "$data/wheel" gensim==4.4.0
    python3 - "$data" <<'PY'
import glob, os, sys, zipfile
data = sys.argv[1]
wheel = zipfile.ZipFile(glob.glob(data + "/wheel/*.whl")[0])
for name in wheel.namelist():
    if os.path.basename(name) in ("lee_background.cor", "similarities0-1.txt", "lee.cor"):
        with open(os.path.join(data, os.path.basename(name)), "wb") as out:
            out.write(wheel.read(name))
PY
fi
HEADWATER_LEE="$data" cargo test --release --workspace --test ranking -- --include-ignored --nocapture
