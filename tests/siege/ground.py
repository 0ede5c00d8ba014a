"""The targets of attacks: installations, their keys, and their servers."""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.service import Service
from tests.histories.scene import Postgresql
from tests.siege.honest import PACE, Place
from tests.siege.scene import ATTACKERS_KEYS, TENANT, Attack, Scene

GRACE = 5.0
"""The server's --shutdown-grace, in seconds."""
ENDING = GRACE + 1.0
"""Seconds within which SIGTERM must end the server."""
WARM, READABLE = 20, 5
"""The numbers of keys that are verified continuously, and that are read."""
NOISE, NOISE_SHORT = 0.02, 0.2
"""Seconds below which a p99 is only noise, from the process scheduler of a machine with few cores. In a run of a few
seconds, the slowest four calls determine the p99."""
LONGEST = 30.0
"""Most seconds that a run takes, beyond what the settings add."""

_VERIFYING = "tumbler:keys:verify"
SCOPES: Mapping[str, str] = {
    "Verify": _VERIFYING,
    "unseen": _VERIFYING,
    "Revoke": "tumbler:keys:revoke",
    "Get": "tumbler:keys:read",
    "new Watch": _VERIFYING,
}
"""The scope of each honest caller's key."""

_SEED = """
import pathlib, sys, tumbler_server
sys.path.insert(0, str(pathlib.Path(tumbler_server.__file__).parents[2]))
from benchmarks import seed
seed.add_digested(sys.argv[1], pathlib.Path(sys.argv[2]), seed.texts(int(sys.argv[3])))
"""
"""Fills a database with the code of the attacked server's own checkout."""

VERSIONS = """
import json, platform, grpc, bcrypt, google.protobuf
print(json.dumps({"Python": platform.python_version(), "grpcio": grpc.__version__,
  "protobuf": google.protobuf.__version__, "bcrypt": bcrypt.__version__}))
"""


@dataclass(frozen=True)
class Settings:
    """The settings of a siege. ``seconds`` is the length of an attack, ``rest`` that of the phases before and after it.

    ``pause`` is the time from then until memory is measured.
    """

    seconds: float = 10.0
    rest: float = 5.0
    pause: float = 3.0
    database: str = "sqlite"
    workers: int = 1
    python: str = Service.python
    full: bool = False
    noise: float = NOISE
    """Seconds below which Verify's p99 is only noise."""


class Ground:
    """Installations to attack. Each is created once, with all keys, and copied for each attack."""

    def __init__(self, folder: Path, settings: Settings, postgresql: Postgresql | None = None) -> None:
        self.folder, self._settings, self._postgresql = folder, settings, postgresql
        self._ready: dict[int, tuple[Service, Place, Scene]] = {}

    def begin(self, attack: Attack, folder: Path) -> tuple[Service, Place, Scene]:
        """Start a server on a copy of an installation, in an empty folder."""
        if attack.cost not in self._ready:
            self._ready[attack.cost] = self._found(attack.cost)
        first, place, scene = self._ready[attack.cost]
        url = ""
        if self._postgresql:
            template = f"siege-ready-{attack.cost}"
            self._postgresql.run(f'DROP DATABASE IF EXISTS "siege-{attack.name}" WITH (FORCE)')
            self._postgresql.run(f'CREATE DATABASE "siege-{attack.name}" TEMPLATE "{template}"')
            url = first.database_url.replace(f"/{template}?", f"/siege-{attack.name}?")
        shutil.copytree(first.data_dir, folder / "data")
        service = self._service(folder / "data", url, self._flags(attack, folder), first.key)
        if attack.keys:
            arguments = [service.database_url, str(service.pepper_file)]
            arguments.append(str(attack.keys * (5 if self._settings.full else 1)))
            subprocess.run([service.python, "-c", _SEED, *arguments], check=True, capture_output=True, timeout=300)
        if attack.new_pepper:  # another installation's pepper: all digests are void
            shutil.copyfile(self._service(folder / "other").init().pepper_file, service.pepper_file)
        try:
            service.start()
        except BaseException:
            kill(service)
            raise
        ca = (folder / "tls.pem").read_bytes() if attack.tls else None
        patience = 5.0 if attack.held.slowest else 2.0
        place = replace(place, target=service.target, ca=ca, patience=patience)
        return service, place, replace(scene, target=service.target, ca=ca, database=service.database_url)

    def _service(self, data_dir: Path, url: str = "", options: Sequence[str] = (), operator: str = "") -> Service:
        service = Service(data_dir, url, options, operator)
        service.python = self._settings.python
        return service

    def _found(self, cost: int) -> tuple[Service, Place, Scene]:
        """Create an installation with all keys, enough for the longest attack."""
        name = f"siege-ready-{cost}"
        url = self._postgresql.new_database(name) if self._postgresql else ""
        service = self._service(self.folder / name, url, ["--bcrypt-cost", str(cost)]).init().start()
        try:
            return service, *self._make_keys(service)
        finally:
            service.stop()

    def _make_keys(self, service: Service) -> tuple[Place, Scene]:
        def some(project: str, number: float, *scopes: str) -> list[Any]:
            with ThreadPoolExecutor(8) as pool:
                make = partial(service.create, project_id=project, scopes=scopes, name="honest")
                return [made.result() for made in [pool.submit(make) for _ in range(int(number))]]

        def caller(project: str, scope: str) -> str:
            return str(some(project, 1, scope)[0].key)

        keys = {role: caller(f"honest-{role.split()[-1].lower()}", scope) for role, scope in SCOPES.items()}
        keys |= {"List": service.key, "denied": caller("honest-revoke", _VERIFYING)}
        keys["watch"] = keys["denied"]
        span = LONGEST * (2 if self._settings.full else 1) + 3 * self._settings.rest + self._settings.seconds
        warm = [made.key for made in some("honest-verify", WARM)]
        unseen = [made.key for made in some("honest-unseen", span * PACE["unseen"])]
        doomed = [(made.api_key.id, made.key) for made in some("honest-revoke", span * PACE["Revoke"])]
        readable = [made.api_key.id for made in some("honest-get", READABLE)]
        mine = {name: caller(TENANT, *scopes) for name, scopes in ATTACKERS_KEYS.items()}
        postmaster = self._postgresql.pid if self._postgresql else 0
        scene = Scene("", mine, warm[0], self._settings.seconds, self._settings.full, postmaster=postmaster)
        return Place("", None, keys, warm, unseen, doomed, readable), scene

    def _flags(self, attack: Attack, folder: Path) -> list[str]:
        flags = ["--shutdown-grace", f"{GRACE:.0f}s", "--bcrypt-cost", str(attack.cost), *attack.options]
        if self._settings.workers > 1:
            flags += ["--workers", str(self._settings.workers)]
        if attack.tls:
            new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "tls.key")
            names = ("-subj", "/CN=siege", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
            command = ["openssl", "req", "-x509", *new_key, *names, "-out", "tls.pem", "-days", "2"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            flags += ["--tls-cert", str(folder / "tls.pem"), "--tls-key", str(folder / "tls.key")]
        return flags


def kill(service: Service) -> None:
    """Kill all processes of a server at once."""
    if service.process is None or service.process.poll() is not None:
        return
    first = psutil.Process(service.process.pid)
    for process in (*first.children(recursive=True), first):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    service.process.wait()


def versions(python: str) -> Mapping[str, str]:
    """Return the versions of a server's components."""
    told = subprocess.run([python, "-c", VERSIONS], check=True, capture_output=True, text=True, timeout=60)
    return dict(json.loads(told.stdout))
