"""The page in a real browser whose microphone hears a file."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from datamodules.synthetic.espeak import EspeakSynthesizer, Voice
from tests.browser import chromium, open_page, wait_until
from tests.experiments.live.tiny import serving


@pytest.mark.browser
def test_a_query_is_ended_by_silence_or_by_the_button(tmp_path: Path) -> None:
    speech = EspeakSynthesizer().synthesize("Remind Lucy to call the doctor.", Voice())
    silence = np.zeros(16_000, np.float32)
    spoken = np.concatenate([silence, speech, silence, silence, silence])
    soundfile.write(tmp_path / "spoken.wav", spoken, 16_000, subtype="PCM_16")
    with serving() as server, chromium(tmp_path / "spoken.wav") as one:
        page = open_page(one, server.address)
        wait_until(page, "live.isReady")
        page.check("#auto-end")
        page.click("#talk")
        wait_until(page, "document.querySelector('#level').value > 0.1")
        wait_until(page, "live.counters.finished == 1")
        assert page.get_attribute("#talk", "aria-pressed") == "false", "silence ended the query"
        seconds = float(page.inner_text("#asked").removeprefix("spoken, ").removesuffix(" s"))
        assert abs(seconds - len(speech) / 16_000) < 0.6, "the silence around it is cut off"
        page.uncheck("#auto-end")
        page.focus("#replies-title")
        page.keyboard.down(" ")
        wait_until(page, "document.querySelector('#asked').textContent == 'listening …'")
        page.wait_for_timeout(700)
        page.keyboard.up(" ")
        wait_until(page, "live.counters.finished == 2")
        assert page.inner_text("#asked").startswith("spoken, ") and page.errors == []  # type: ignore[attr-defined]
