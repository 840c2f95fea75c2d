#!/usr/bin/env bash
# The whole reproduction: set up an environment, run every notebook in order, write reports/<profile>/index.html.
set -euo pipefail
unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
root=$(pwd -P)
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*"; }
fail() { # fail CODE MESSAGE...: each message on a line of its own
    local code=$1
    shift
    printf '%s\n' "$@" >&2
    exit "$code"
}
advise() { # advise CODE: the last line of every failure, once what the doctor needs is installed
    if [ "$1" != 0 ] && [ "$1" != 130 ] && "${python:-}" -c 'import acs_lib.doctor, torch, typer' 2>/dev/null; then
        printf 'look: %s -m acs_lib doctor\n' "$python" >&2
    fi
}
trap 'advise $?' EXIT
trap 'exit 130' INT

# ---------------------------------------------------------------------------------------------- what can be asked for
options=" --profile --from --limit --engine --dry-run --test --full --help "

usage() {
    local profiles=(acs_lib/profiles/*.yaml)
    profiles=("${profiles[@]##*/}")
    profiles=($(printf '%s\n' "${profiles[@]%.yaml}" | LC_ALL=C sort))
    cat <<EOF
Usage: ./run_all.sh [--profile NAME] [--from N] [--limit N] [--engine NAME] [--dry-run]
       ./run_all.sh --test [--full]

Sets up the environment (the active conda or virtual environment, or .venv in this folder), then hands its options to
\`acs run\`, which runs the notebooks in order. Finished notebooks are reused as long as nothing they depend on has
changed.

  --profile NAME  what to run (default: embedded), one of: ${profiles[*]}
  --from N        run notebook N and the later ones anew
  --limit N       a first look: at most N queries of each size and split, in a report of its own
  --engine NAME   who samples, local or ray (docs/scale_out.md)
  --dry-run       set up, then only say which notebooks would run, and what a GPU's profile would cost
  --test          set up, then check style and imports, run the tests, and compare the notebooks' outputs with what
                  they give now
  --full          after that, run the embedded profile and compare the notebooks as they are stored, too
  --help          this text
EOF
}

extra=run
[[ " $* " != *" --engine"[=\ ]"ray "* ]] || extra=run,ray
for word; do
    case $word in
        --help | -h)
            usage
            exit 0
            ;;
        --test) extra=test ;;
        -*)
            [[ $options == *" ${word%%=*} "* ]] ||
                fail 2 "run_all.sh: unknown option $word" "valid ones:$options" "./run_all.sh --help explains them"
            ;;
    esac
done
case " $* " in
    " --test " | " --test --full ") ;;
    *" --test "* | *" --full "*)
        fail 2 "run_all.sh: --test runs the whole test suite and takes nothing besides but --full, after it"
        ;;
esac

# ------------------------------------------------------------------------------------------------------- environment
is_python() { # is_python COMMAND [BELOW]: it runs, and is Python 3.11 or later (and below 3.BELOW)
    "$1" -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, ${2:-99}))" >/dev/null 2>&1
}

active=${VIRTUAL_ENV:-}
if [ -z "$active" ] && [ -n "${CONDA_PREFIX:-}" ]; then
    if [ "${CONDA_DEFAULT_ENV:-}" = base ]; then
        say "environment: conda's base is left as it is"
    else
        active=$CONDA_PREFIX
    fi
fi

if [ -n "$active" ]; then
    say "environment: the active one, $active"
    prefix=$active
    python=$prefix/bin/python
    is_python "$python" || fail 1 "run_all.sh: the active environment has no Python 3.11 or later ($python)" \
        "mend: leave it (deactivate, or conda deactivate) and start again, or" \
        "      conda env create -f environment.yml && conda activate acs-kit"
else
    prefix=$root/.venv
    python=$prefix/bin/python
    if [ -x "$python" ] && ! is_python "$python"; then
        fail 1 "run_all.sh: .venv holds no working Python 3.11 or later" "mend: rm -r .venv, then start again"
    fi
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        maker=
        for name in python3 python3.11 python3.12 python3.13 python3.14; do
            if is_python "$name" 15; then
                maker=$name
                break
            fi
        done
        [ -n "$maker" ] || fail 1 "run_all.sh: no Python 3.11 to 3.14 found (tried python3 and python3.11 to python3.14)" \
            "mend, one of (none needs root):" \
            "      conda env create -f environment.yml && conda activate acs-kit" \
            "      uv venv --seed --python 3.11 .venv" \
            "      an installer from python.org, or pyenv install 3.11"
        say "environment: making .venv with $("$maker" --version 2>&1)"
        if ! message=$("$maker" -m venv "$prefix" 2>&1); then
            fail 1 "run_all.sh: $maker could not make .venv:" "$message" \
                "mend: install your system's venv package (Debian, Ubuntu: python3-venv), or without root" \
                "      conda env create -f environment.yml && conda activate acs-kit"
        fi
    else
        say "environment: .venv"
    fi
fi
export PATH="$prefix/bin:$PATH"
say "environment: $("$python" --version 2>&1), ready after $SECONDS s"

# ------------------------------------------------------------------------------------------------------ installation
log=$prefix/acs-kit-install.log
stamp=$prefix/acs-kit-install.sha256

explain() { # what to do about the failure in the log
    if grep -qi 'no space left' "$log"; then
        say "mend: free some disk space ($(du -sh "$prefix" 2>/dev/null | cut -f1) used by $prefix so far), then start again"
    elif grep -qiE 'name resolution|timed out|connection (refused|reset|broken|aborted)|unreachable|proxyerror' "$log"; then
        say "mend: check the network, or pip's proxy and index settings (pip config list), then start again"
    elif grep -qiE 'no matching distribution|could not find a version' "$log"; then
        say "mend: a pinned package has no build for this Python or system; try Python 3.11:" \
            "conda env create -f environment.yml && conda activate acs-kit"
    else
        say "mend: read the lines above and $log, then start again"
    fi
}

logged() { # logged WHAT COMMAND...: quiet, with a line of progress; on failure the end of the log and what to do
    local what=$1 start=$SECONDS child
    shift
    say "+ $*" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null &
    child=$!
    trap 'kill "$child" 2>/dev/null; fail 130 "" "stopped; the same command goes on from here"' INT TERM
    while kill -0 "$child" 2>/dev/null; do
        sleep 1
        if [ -t 1 ]; then
            printf '\r%s: %d s ' "$what" $((SECONDS - start))
        elif [ $(((SECONDS - start) % 60)) = 59 ]; then
            say "$what: $((SECONDS - start)) s ..."
        fi
    done
    trap 'exit 130' INT
    trap - TERM
    if [ -t 1 ]; then printf '\r'; fi
    if wait "$child"; then
        say "$what: done in $((SECONDS - start)) s"
    else
        tail -n 20 "$log" >&2
        fail 1 "run_all.sh: $what failed (whole log: $log)" "$(explain)"
    fi
}

fingerprint() { # fingerprint EXTRA: of everything the installation depends on; quiet when it is interrupted
    "$python" -c '
import hashlib, pathlib, sys
files = [pathlib.Path(name).read_bytes() for name in ("requirements.lock", "pyproject.toml")]
print(hashlib.sha256(b"\0".join([*files, *map(str.encode, [sys.version, *sys.argv[1:]])])).hexdigest())' "$root" "$1" 2>/dev/null
}

if [ -f "$stamp" ] && grep -qxF "$(fingerprint $extra)" "$stamp"; then
    say "packages: as in requirements.lock"
else
    : >"$log" || fail 1 "run_all.sh: cannot write to $prefix" "mend: use an environment of your own"
    "$python" -m pip --version >/dev/null 2>&1 || logged "pip" "$python" -m ensurepip --upgrade
    logged "packages: acs-kit[$extra]" "$python" -m pip install --no-input --progress-bar off --no-compile \
        -c requirements.lock -e ".[$extra]"
    logged "bytecode, on all cores" "$python" -c '
import compileall, contextlib, sysconfig
for folder in sorted({sysconfig.get_path(kind) for kind in ("purelib", "platlib")}):
    with contextlib.suppress(OSError): # no more than time is lost
        compileall.compile_dir(folder, quiet=2, workers=0)'
    for name in run run,ray test; do # each holds those before it
        fingerprint $name
        [ $name != $extra ] || break
    done >"$stamp"
fi
say "set-up: $SECONDS s"

# --------------------------------------------------------------------------------------------------------------- run
[ $extra = test ] || exec "$python" -m acs_lib run "$@" # it gives that advice itself
"$python" -m ruff check .
"$python" -m ruff format --check .
lint-imports
export OMP_NUM_THREADS=1 # a process a core, whose threads would wait for each other
"$python" -m pytest --numprocesses=auto --dist=loadfile
export TQDM_DISABLE=1 # progress is no result
notebooks() { # notebooks FILE...: run them, and compare every output with the stored one
    "$python" -m pytest --numprocesses=auto --dist=loadfile -p tests.nbval_numbers --nbval --nbval-current-env \
        --nbval-cell-timeout=600 "$@"
}
notebooks tests/notebooks/*.ipynb
[ "${2:-}" = --full ] || exit 0
"$python" -m acs_lib run --profile embedded
notebooks notebooks/0[1-8]*.ipynb
