"""Makes the pictures of docs/monitoring.md: starts a real run and photographs Ray's dashboard in headless Chromium.

    python docs/screenshot.py          # some minutes; needs Chromium (apt-get install chromium)

It logs in as a reader of the page does, with the token, and asks Chromium over its DevTools protocol; aiohttp comes with Ray.
"""

import asyncio
import base64
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

HERE = Path(__file__).resolve().parent
RUN = "chest-1"
WIDTH, LOW, HIGH = 1500, 520, 1500
PATIENCE_S = 240.0
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-port=0")  # fmt: skip
COMMON = ("--tasks", "phantom_pneumonia", "--backbones", "mobilenet_v2", "--weights", "none", "--size", "32", "--offline")


class Page:
    """One tab of Chromium."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket, self.number = socket, 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol; its result. Raises RuntimeError with what Chromium says against it."""
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": parameters})
        while True:
            answer = await self.socket.receive_json()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    async def size(self, height: int) -> None:
        """Be so many pixels high, and WIDTH wide."""
        await self.call("Emulation.setDeviceMetricsOverride", width=WIDTH, height=height, deviceScaleFactor=1, mobile=False)

    async def shows(self, text: str) -> None:
        """Wait until a text stands on the page. Raises TimeoutError."""
        until = time.monotonic() + PATIENCE_S
        while text not in await self.text():
            if time.monotonic() > until:
                raise TimeoutError(f"the page does not show {text!r} but:\n{await self.text()}")
            await asyncio.sleep(0.5)

    async def text(self) -> str:
        """What stands on the page."""
        found = await self.call("Runtime.evaluate", expression="document.body ? document.body.innerText : ''")
        return found["result"].get("value", "")

    async def picture(self, name: str) -> None:
        """Write docs/NAME.png."""
        await asyncio.sleep(2)  # the dashboard fades its tables in
        shot = await self.call("Page.captureScreenshot", format="png")
        (HERE / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))
        print(HERE / f"{name}.png", flush=True)


@contextlib.asynccontextmanager
async def browser(profile: str) -> AsyncIterator[Page]:
    """Headless Chromium with an empty profile, showing nothing."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("Chromium is missing: apt-get install chromium")
    process = subprocess.Popen([program, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL)
    try:
        note, until = Path(profile) / "DevToolsActivePort", time.monotonic() + PATIENCE_S
        while not (note.is_file() and "\n" in note.read_text()):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("Chromium did not come up")
            await asyncio.sleep(0.2)
        port = note.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                (tab,) = [each for each in await answer.json() if each["type"] == "page"]
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                await page.size(LOW)
                yield page
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextlib.contextmanager
def search(folder: str, *more: str):
    """The main job, running; gives the address of its dashboard and the file of the token, as it prints them."""
    command = ["python", "experiments/tune_backbones.py", *COMMON, "--storage", folder, "--name", RUN, *more]  # as a reader types it
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent, env=environment)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := re.match(r"Dashboard: (http://\S+) \(log in with the token that `cat (\S+)` prints\)", line):
                yield found[1], Path(found[2]).read_text().strip()
                return
        raise RuntimeError("the main job ended without naming its dashboard")
    finally:
        process.terminate()
        process.stdout.close()
        process.wait(timeout=120)


async def photograph(dashboard: str, token: str, views: dict[str, tuple[str, int, list[str]]], login: bool) -> None:
    """Pictures of some views. views: name of the picture -> (path in the dashboard, height, texts to wait for)."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        async with browser(profile) as page:
            if login:
                await page.call("Page.navigate", url=dashboard)
                await page.shows("oken")
                await page.picture("monitoring-login")
            await page.call("Network.setCookie", name="ray-authentication-token", value=token, url=dashboard, httpOnly=True)
            for name, (path, height, texts) in views.items():
                await page.size(height)
                await page.call("Page.navigate", url="about:blank")  # a change behind the '#' alone loads nothing
                await page.call("Page.navigate", url=f"{dashboard}/{path}")
                for text in texts:
                    await page.shows(text)
                await page.picture(name)


async def gauges(dashboard: str, token: str) -> str:
    """Lines of the metrics port that are tlray's."""
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
        async with session.get(f"{dashboard}/nodes?view=summary") as answer:
            node = (await answer.json())["data"]["summary"][0]["raylet"]
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            async with session.get(f"http://{node['nodeManagerAddress']}:{node['metricsExportPort']}/metrics") as answer:
                lines = [line for line in (await answer.text()).splitlines() if line.startswith("ray_tlray_")]
            if any("best" in line for line in lines):
                return "\n".join(lines)
            await asyncio.sleep(1)
    raise TimeoutError("no gauge of tlray was exported")


def main() -> None:
    """Two runs: one whose trials are TorchTrainers, one whose trials train in their own processes."""
    cell = f"{RUN}-phantom_pneumonia-mobilenet_v2"
    many = ("--trials", "8", "--epochs", "20")
    with tempfile.TemporaryDirectory() as folder, search(folder, *many, "--workers-per-trial", "2") as (at, token):
        views = {"monitoring-torch-trainer": ("#/actors", HIGH, [cell, "RayTrainWorker", "DatasetManager"])}
        asyncio.run(photograph(at, token, views, login=True))
    with tempfile.TemporaryDirectory() as folder, search(folder, *many) as (at, token):
        views = {"monitoring-actors": ("#/actors", LOW, [cell, "ALIVE"]), "monitoring-jobs": ("#/jobs", LOW, ["tune_backbones.py"])}
        asyncio.run(photograph(at, token, views, login=False))
        print(asyncio.run(gauges(at, token)))


if __name__ == "__main__":
    main()
