"""Takes the picture of the live page that the README shows, from a real run in a real browser.

    python -m tests.experiments.live.picture RUN FILE.png

Prints, too, what the page measured: first sounds, the share of the player's buffer, underruns.
"""

import statistics
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from experiments.jobs.speaking.speaking_model import load_speaking_model
from experiments.live.queries import read_kinds, read_test_queries
from experiments.live.server import ServerThread
from experiments.live.system import LiveSystem
from tests.browser import chromium, open_page, wait_until

NUM_QUERIES = 10
QUERY = "Book Lucy a flight to the capital of Russia on Wednesday."


def take_picture(run: Path, file: Path, decodings: tuple[str, str] = ("ntp", "mdm_4")) -> dict[str, list[float]]:
    """Ask test queries and then a typed one, write what the page looks like, and return its counters."""
    model = load_speaking_model(run)
    system = LiveSystem(model, read_test_queries(model.config, NUM_QUERIES), read_kinds(model.config))
    system.warm_up()
    with ServerThread(system) as server, chromium() as browser:
        page = open_page(browser, server.address, width=1280, height=760)
        wait_until(page, "live.isReady")
        for place, name in enumerate(decodings):
            page.select_option(f"#decoding-{place}", name)
        for number in range(NUM_QUERIES):
            page.select_option("#query", index=number)
            page.click("#test button")
            wait_until(page, f"live.counters.finished == {2 * number + 2}")
        page.fill("#text", QUERY)
        page.click("#say button")
        wait_until(page, f"live.counters.finished == {2 * NUM_QUERIES + 2}")
        page.wait_for_timeout(1500)
        shot = Image.open(BytesIO(page.screenshot())).convert("RGB")
        shot.quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)
        assert page.errors == []  # type: ignore[attr-defined]
        return page.evaluate("live.counters")


if __name__ == "__main__":
    found = take_picture(Path(sys.argv[1]), Path(sys.argv[2]))
    sounds, arrivals = found["firstSoundMs"], found["arrivalMs"]
    for name, first in (("first decoding", 0), ("second decoding", 1)):
        sound, arrival = sounds[first:-2:2], arrivals[first:-2:2]
        buffer = statistics.median(a - b for a, b in zip(sound, arrival, strict=True))
        first_ms = f"first sound {statistics.median(sound):.0f} ms, at most {max(sound):.0f}"
        print(f"{name}: {first_ms}, of that buffer {buffer:.0f}")
    rest = f"{found['underruns']} underruns, {found['played']} samples played"
    print(f"typed query: first sound {sounds[-2]:.0f} ms; {rest}")
