"""The house rules that a machine can check: rooms, threads, devices, prints, seals, sizes and words."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pipeline", "engines", "models", "configs", "tools")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".sh", ".txt", ".json", ".cfg", ".yml", ".yaml", ""}
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 80
SELF = Path(__file__).name

# Written in pieces, so that this file does not contain what it looks for.
UNFINISHED = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error")
FOREIGN_TEXT = (
    r"/(?:work|tmp|root|home)/" + "[a-z]",
    "this " + "session",
    "the " + "session tool",
    r"\bsub-?" + r"agents?\b",
    r"\blanguage " + r"model\b",
    r"\.lib" + "rary/",
    r"py" + r"pi\.org",
    r"hugging" + r"face\.co/",
)


def room_files(*rooms: str) -> list[Path]:
    return sorted(file for room in rooms or ROOMS for file in (ROOT / room).rglob("*.py"))


def tracked_files() -> list[Path]:
    """Every file of the project: as git lists them, or, outside a checkout, all that is not a cache."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=60
        ).stdout.decode()
        files = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        files = [
            file
            for file in ROOT.rglob("*")
            if not any(part.startswith(".") for part in file.relative_to(ROOT).parts[:-1])
        ]
    return [file for file in files if file.is_file() and not file.is_symlink()]


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def findings(files: list[Path], is_fault: Callable[[ast.AST], bool]) -> list[str]:
    """'file:line' of every syntax node that `is_fault` accepts."""
    return [f"{name_of(file)}:{node.lineno}" for file in files for node in nodes(file) if is_fault(node)]  # type: ignore[attr-defined]


def nodes(file: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(file.read_text("utf-8"), str(file)))


def dotted(node: ast.AST) -> str:
    """'a.b.c' of a name or attribute chain, '' of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def imported(node: ast.AST) -> list[str]:
    """Full names that an import statement binds, [] of anything else."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def test_rooms_import_only_what_they_may() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_only_tools_print_or_exit() -> None:
    spoken = {
        "print",
        "input",
        "exit",
        "quit",
        "sys.exit",
        "os._exit",
        "sys.stdout.write",
        "sys.stderr.write",
    }

    def speaks(node: ast.AST) -> bool:
        if isinstance(node, ast.Call):
            return dotted(node.func) in spoken
        return isinstance(node, ast.Raise) and "SystemExit" in ast.dump(node)

    assert findings(room_files("pipeline", "engines", "models", "configs"), speaks) == []


def test_only_capture_and_sink_files_open_media() -> None:
    openers = {"av.open", "cv2.VideoCapture", "cv2.VideoWriter", "pyvirtualcam.Camera", "sounddevice.Stream"}
    # measure/reference reads finished files with code of its own: a fault of capture must not hide itself.
    allowed = re.compile(
        r"pipeline/(media/(open|encode)|live/(source|sink)\w*|measure/(reference|bench_clip))\.py"
    )
    files = [file for file in room_files() if not allowed.fullmatch(name_of(file))]
    assert findings(files, lambda node: isinstance(node, ast.Call) and dotted(node.func) in openers) == []


def test_threads_live_in_the_runner_and_the_page_server_only() -> None:
    makers = {"threading.Thread", "threading.Timer", "ThreadPoolExecutor", "ProcessPoolExecutor", "Thread"}
    allowed = {"pipeline/runner.py", "pipeline/runner_call.py", "pipeline/live/page_server.py"}
    files = [file for file in room_files() if name_of(file) not in allowed]

    def starts_thread(node: ast.AST) -> bool:
        if any(
            name.startswith(("multiprocessing", "concurrent.futures", "_thread")) for name in imported(node)
        ):
            return True
        return isinstance(node, ast.Call) and dotted(node.func) in makers

    assert findings(files, starts_thread) == []


def test_only_redact_and_paste_can_seal_a_frame() -> None:
    allowed = {"pipeline/frame.py", "pipeline/paste/redact.py", "pipeline/paste/paster.py"}
    files = [file for file in room_files() if name_of(file) not in allowed]
    secret = {"seal", "_seal", "_SEAL", "_Seal"}

    def reaches_for_the_seal(node: ast.AST) -> bool:
        if isinstance(node, ast.ImportFrom):
            from_frame = (node.module or "").endswith("pipeline.frame")
            return from_frame and any(alias.name in {*secret, "*"} for alias in node.names)
        if isinstance(node, ast.Call) and dotted(node.func).endswith("SafeFrame"):
            return True
        return isinstance(node, ast.Attribute) and node.attr in {"_SEAL", "_seal", "_Seal"}

    assert findings(files, reaches_for_the_seal) == []
    in_frame = [name_of(file) for file in room_files() if "_SEAL" in file.read_text("utf-8")]
    assert set(in_frame) <= allowed


def test_torch_is_imported_by_models_and_training_commands_only() -> None:
    files = [file for file in room_files("tools") if not file.name.startswith("train_")]
    files += room_files("pipeline", "engines", "configs")
    assert findings(files, lambda node: any(name.split(".")[0] == "torch" for name in imported(node))) == []
    package = ROOT / "models" / "__init__.py"
    assert findings([package], lambda node: bool([n for n in imported(node) if "torch" in n])) == []


def swallows(node: ast.AST) -> bool:
    if not isinstance(node, ast.ExceptHandler):
        return False
    is_wide = node.type is None or dotted(node.type) in {"Exception", "BaseException"}
    is_silent = all(isinstance(step, (ast.Pass, ast.Continue)) for step in node.body)
    return node.type is None or (is_wide and is_silent)


def is_dangerous_call(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return any(name.split(".")[0] in {"pickle", "shelve", "marshal", "dill"} for name in imported(node))
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    shell = keywords.get("shell")
    if isinstance(shell, ast.Constant) and shell.value:
        return True
    callee = dotted(node.func)
    if callee == "torch.load":
        safe = keywords.get("weights_only")
        return not (isinstance(safe, ast.Constant) and safe.value is True)
    if callee in {"np.load", "numpy.load"}:
        allow = keywords.get("allow_pickle")
        return isinstance(allow, ast.Constant) and bool(allow.value)
    return callee in {"eval", "exec", "os.system", "os.popen"}


def test_no_error_is_swallowed() -> None:
    assert findings(room_files(), swallows) == []


def test_nothing_runs_a_shell_or_unpickles() -> None:
    assert findings(room_files(), is_dangerous_call) == []


def test_nothing_is_left_unfinished() -> None:
    words = re.compile(r"\b(" + "|".join(UNFINISHED) + r")\b")
    files = [
        file
        for file in tracked_files()
        if file.suffix in {".py", ".sh", ".toml", ".md"} and file.name != SELF
    ]
    assert [name_of(file) for file in files if words.search(file.read_text("utf-8"))] == []


def test_files_and_functions_stay_small() -> None:
    files = [file for file in tracked_files() if file.suffix == ".py"]
    long_files = [
        f"{name_of(file)}: {count} lines"
        for file in files
        if (count := len(file.read_text("utf-8").splitlines())) > MAX_FILE_LINES
    ]
    assert long_files == []

    def is_long(node: ast.AST) -> bool:
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        return is_function and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES  # type: ignore[attr-defined]

    assert findings(room_files(), is_long) == []


def test_files_are_named_after_what_they_own() -> None:
    vague = {"util", "utils", "helper", "helpers", "misc", "common", "stuff"}
    assert [name_of(file) for file in tracked_files() if file.stem in vague] == []


def test_modules_say_what_they_are_for() -> None:
    silent = [
        name_of(file) for file in room_files() if not ast.get_docstring(ast.parse(file.read_text("utf-8")))
    ]
    assert silent == []


@pytest.mark.parametrize("pattern", FOREIGN_TEXT)
def test_the_project_speaks_of_itself_only(pattern: str) -> None:
    found = []
    for file in tracked_files():
        if file.suffix in TEXT_SUFFIXES and file.name not in {SELF, "LICENSE"}:
            text = file.read_text("utf-8", errors="replace")
            found += [
                f"{name_of(file)}: {match.group()}" for match in re.finditer(pattern, text, re.IGNORECASE)
            ]
    assert found == []


def test_only_tests_and_training_read_the_evaluation_data() -> None:
    mention = re.compile(r"shared/(data|weights)|KEYFACE_SHARED")
    files = [file for file in room_files() if not name_of(file).startswith("tools/train_")]
    assert [name_of(file) for file in files if mention.search(file.read_text("utf-8"))] == []


def test_typing_links_lead_to_the_rooms() -> None:
    for room in ROOMS:
        link = ROOT / ".typing" / "keyface" / room
        assert link.is_symlink() and link.resolve() == ROOT / room
        assert not link.readlink().is_absolute()


def test_no_large_file_is_tracked() -> None:
    assert [name_of(file) for file in tracked_files() if file.stat().st_size > 16 * 1024 * 1024] == []


def test_python_packages_hold_no_stray_folders() -> None:
    """setuptools is told the packages one by one: one that is not listed would be missing, silently."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    folders = {name_of(file.parent).replace("/", ".") for file in room_files()}
    assert {f"keyface.{folder}" for folder in folders} == listed
    assert [
        name
        for name in listed
        if not (ROOT / name.removeprefix("keyface.").replace(".", "/") / "__init__.py").exists()
    ] == []
