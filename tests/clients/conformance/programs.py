"""The programs built from the clients' sources: for each language a verifier, and an example.

A verifier's program reads and answers JSON lines. ``Program`` is the driver's end of that.
``python -m tests.clients.conformance.programs`` builds them all before the tests, and needs nothing installed.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoAnswer  # before Python 3.11 not the built-in one
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
BUILD = ROOT / "build" / "clients"
CLIENTS = ROOT / "clients"
EXAMPLES_FOLDER = ROOT / "examples"

JAVA_PROGRAM, JAVA_EXAMPLE = BUILD / "java.arguments", BUILD / "java-example.arguments"

DEMAND_ALL = "TUMBLER_DEMAND_ALL"
"""The variable that turns a missing toolchain from a skipped test into a failure."""

PATIENCE = 60.0
"""Seconds after which a program that has not answered counts as broken."""


class Missing(Exception):
    """A language cannot be tested here, and the reason."""


class Broken(Exception):
    """A program that exited, did not answer, or reported an internal error."""


@dataclass(frozen=True)
class Tool:
    """A command, and its oldest supported version if that matters."""

    command: str
    asked: str = ""
    oldest: tuple[int, int] = (0, 0)

    def lack(self) -> str:
        """Return what is wrong with it, or "" if it is usable."""
        if shutil.which(self.command) is None:
            return f"{self.command} is not installed"
        if not self.asked:
            return ""
        told = subprocess.run([self.command, self.asked], capture_output=True, text=True, check=False).stdout
        version = re.search(r"(\d+)(?:\.(\d+))?", told)
        if version is None or (int(version[1]), int(version[2] or 0)) < self.oldest:
            return f"{self.command} is older than {self.oldest[0]}.{self.oldest[1]}"
        return ""


_GO = (Tool("go", "version", (1, 24)),)
_TYPESCRIPT = (Tool("node", "--version", (20, 9)), Tool("npm"))
_JAVA = (Tool("java", "--version", (17, 0)), Tool("mvn"))


@dataclass(frozen=True)
class Product:
    """A program, its sources and how to build it."""

    name: str
    tools: tuple[Tool, ...]
    sources: tuple[Path, ...]
    build: Callable[[], None]
    command: tuple[str, ...]

    @property
    def lock(self) -> Path:
        """The lock to hold while it is built. Each toolchain has one, because its products share their sources."""
        return BUILD / f"{self.tools[0].command if self.tools else 'python'}.lock"

    def make(self) -> None:
        """Build it, unless its sources have not changed since. Raises ``Missing``, or ``Broken`` if the build fails."""
        for tool in self.tools:
            if found := tool.lack():
                raise Missing(f"{self.name}: {found}")
        BUILD.mkdir(parents=True, exist_ok=True)
        with locked(self.lock):
            stamp, now = BUILD / f"{self.name}.made-of", fingerprint(*self.sources)
            if not stamp.exists() or stamp.read_text() != now:
                self.build()
                stamp.write_text(now)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that other test processes respect."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fingerprint(*folders_: Path) -> str:
    """Return a digest that changes with every source in the folders. Files that tools generate there do not count."""
    left = {"node_modules", "target", "dist", "build", "__pycache__"}
    digest = hashlib.sha256()
    for parent, folders, files in itertools.chain.from_iterable(map(os.walk, folders_)):
        folders[:] = sorted(name for name in folders if name not in left)
        for path in (Path(parent, name) for name in sorted(files)):
            found = path.stat()
            digest.update(f"{path} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def run(*command: str, cwd: Path) -> None:
    """Run a tool to its end. Raises ``Broken`` with its output if it fails."""
    ended = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if ended.returncode:
        raise Broken(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout[-4000:]}")


def _nothing() -> None:
    """Build nothing: Python runs from its sources."""


def _go(folder: Path, package: str, program: Path) -> Callable[[], None]:
    return lambda: run("go", "build", "-o", str(program), package, cwd=folder)


def _typescript() -> None:
    install_npm_packages(CLIENTS / "typescript")
    run("npm", "run", "--silent", "conformance", cwd=CLIENTS / "typescript")


def _typescript_example() -> None:
    for folder in (CLIENTS / "typescript", EXAMPLES_FOLDER / "typescript"):
        install_npm_packages(folder)
        run("npm", "run", "--silent", "build", cwd=folder)


def install_npm_packages(folder: Path) -> None:
    """Install the packages in a folder's lock file, unless they are installed."""
    installed, wanted = folder / "node_modules" / ".package-lock.json", folder / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
        run("npm", "ci", "--silent", "--no-audit", "--no-fund", cwd=folder)


def _java() -> None:
    made = CLIENTS / "java" / "target"
    maven("test-compile", cwd=CLIENTS / "java")
    _name_classes(JAVA_PROGRAM, "dev.tumbler.Harness", made / "test-classes", made / "classes", made / "test.classpath")


def _java_example() -> None:
    made = EXAMPLES_FOLDER / "java" / "target"
    maven("-DskipTests", "install", cwd=CLIENTS / "java")
    maven("compile", "dependency:build-classpath", cwd=EXAMPLES_FOLDER / "java")
    _name_classes(JAVA_EXAMPLE, "Orders", made / "classes", made / "classpath")


def maven(*goals: str, cwd: Path) -> None:
    """Run Maven with the repository of the Java client's scripts, so that it installs nothing for other projects."""
    run("mvn", "-q", "-B", f"-Dmaven.repo.local={ROOT / 'build' / 'java' / 'm2'}", *goals, cwd=cwd)


def _name_classes(to: Path, main: str, *classes: Path) -> None:
    """Write the arguments of a ``java`` command that runs a class. A file among the paths lists more paths.

    It gets copies of the classes, so that a new compilation does not affect a running program.
    """
    copies = to.with_suffix("")
    shutil.rmtree(copies, ignore_errors=True)
    paths = [
        str(shutil.copytree(path, copies / path.name)) if path.is_dir() else path.read_text().strip()
        for path in classes
    ]
    to.write_text(f'-cp "{os.pathsep.join(paths)}" {main}')


_JVM = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""A JVM for a program that ends before the optimizing compiler would pay, as ``.mvn/jvm.config`` says for Maven."""

_PYTHON_PROGRAM = str(ROOT / "tests" / "clients" / "harness" / "python.py")

PROGRAMS: Mapping[str, Product] = {
    product.name: product
    for product in (
        Product("python-sync", (), (), _nothing, (sys.executable, _PYTHON_PROGRAM, "sync")),
        Product("python-aio", (), (), _nothing, (sys.executable, _PYTHON_PROGRAM, "aio")),
        Product(
            "go",
            _GO,
            (CLIENTS / "go",),
            _go(CLIENTS / "go", "./internal/conformance", BUILD / "go"),
            (str(BUILD / "go"),),
        ),
        Product(
            "typescript",
            _TYPESCRIPT,
            (CLIENTS / "typescript",),
            _typescript,
            ("node", "clients/typescript/build/conformance/harness.js"),
        ),
        Product(
            "java",
            _JAVA,
            (CLIENTS / "java",),
            _java,
            (*_JVM, f"@{JAVA_PROGRAM}"),
        ),
    )
}
"""The verifiers, each as a program that speaks the line protocol."""

EXAMPLES: Mapping[str, Product] = {
    product.name: product
    for product in (
        Product("python-example", (), (), _nothing, (sys.executable, "examples/python/orders.py")),
        Product(
            "go-example",
            _GO,
            (CLIENTS / "go", EXAMPLES_FOLDER / "go"),
            _go(EXAMPLES_FOLDER / "go", ".", BUILD / "go-example"),
            (str(BUILD / "go-example"),),
        ),
        Product(
            "typescript-example",
            _TYPESCRIPT,
            (CLIENTS / "typescript", EXAMPLES_FOLDER / "typescript"),
            _typescript_example,
            ("node", "examples/typescript/dist/orders.js"),
        ),
        Product(
            "java-example",
            _JAVA,
            (CLIENTS / "java", EXAMPLES_FOLDER / "java"),
            _java_example,
            (*_JVM, f"@{JAVA_EXAMPLE}"),
        ),
    )
}
"""The services in ``examples/``. They run in the repository's root."""


def make_all() -> None:
    """Build what can be built here, the toolchains in parallel."""
    products = (*PROGRAMS.values(), *EXAMPLES.values())
    by_lock = {product.lock: [each for each in products if each.lock == product.lock] for product in products}

    def make(products: list[Product]) -> None:
        for product in products:
            with contextlib.suppress(Missing, Broken):  # the tests report it
                product.make()

    with ThreadPoolExecutor() as pool:
        list(pool.map(make, by_lock.values()))


@dataclass
class Program:
    """A running program. Close it at the end."""

    name: str
    log: Path
    """The file for its stderr."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _waiting: dict[int, "Future[dict[str, Any]]"] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        product = PROGRAMS[self.name]
        product.make()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                product.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={**os.environ, "GRPC_VERBOSITY": "NONE"},
            )
        self._reader = threading.Thread(target=self._read, name=f"{self.name} answers", daemon=True)
        self._reader.start()

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, op: str, **arguments: Any) -> "Future[dict[str, Any]]":
        """Send a request, and do not wait for the answer."""
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = future
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps({"id": number, "op": op, **arguments}) + "\n")
                self._process.stdin.flush()
            except OSError:
                raise Broken(f"{self.name} does not listen any more: {self.said()}") from None
        return future

    def call(self, op: str, patience: float = PATIENCE, **arguments: Any) -> dict[str, Any]:
        """Send a request and return the answer. Raises ``Broken`` if there is none."""
        try:
            answer = self.begin(op, **arguments).result(patience)
        except NoAnswer:
            raise Broken(f"{self.name} did not answer {op} within {patience:.0f} s: {self.said()}") from None
        if answer.get("error") in {"internal", "op"}:
            raise Broken(f"{self.name} could not {op}: {answer}")
        return answer

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop its process meanwhile, as in a paused container."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def said(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-2000:]

    def close(self) -> None:
        """End the process by closing its stdin."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise Broken(f"{self.name} did not end when its input did: {self.said()}") from None
        finally:
            self._reader.join(10)
            assert self._process.stdout is not None
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        why = "ended"
        for line in self._process.stdout:
            try:
                answer = json.loads(line)
                with self._lock:
                    waiting = self._waiting.pop(answer.pop("id"))
            except (ValueError, KeyError):
                why = f"answered {line[:200]!r}"
                break
            waiting.set_result(answer)
        with self._lock:
            left = list(self._waiting.values())
            self._waiting.clear()
        for waiting in left:
            waiting.set_exception(Broken(f"{self.name} {why}: {self.said()}"))


if __name__ == "__main__":
    make_all()
