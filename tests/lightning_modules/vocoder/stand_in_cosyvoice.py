"""Writes a folder with the module paths and signatures of CosyVoice, to test what is done with a checkout.

Its flow and HiFT only have the shapes of the real ones, and depend on what those depend on: the flow on three tokens
ahead and on a table of noise over absolute frames, HiFT on drawn noise and on the excitation that it is given back.
"""

from pathlib import Path

FLOW = """
import torch


class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rand_noise = torch.randn(1, 80, 1200, generator=torch.Generator().manual_seed(0))


class CausalMaskedDiffWithXvec(torch.nn.Module):
    def __init__(self, vocab_size=6561):
        super().__init__()
        self.table = torch.nn.Embedding(vocab_size, 80)
        self.decoder = Decoder()
        self.token_mel_ratio = 2
        self.pre_lookahead_len = 3

    @torch.inference_mode()
    def inference(self, token, token_len, prompt_token, prompt_token_len, prompt_feat, prompt_feat_len, embedding,
                  streaming, finalize):
        assert token.shape[0] == 1 and streaming is True and token_len.item() == token.shape[1]
        assert prompt_token_len.item() == prompt_token.shape[1] and prompt_feat_len.item() == prompt_feat.shape[1]
        hidden = self.table(torch.cat([prompt_token, token], dim=1))
        ahead = torch.nn.functional.pad(hidden, (0, 0, 0, 3)).unfold(1, 4, 1).mean(-1)
        if not finalize:
            ahead = ahead[:, : -self.pre_lookahead_len]
        mel = ahead.repeat_interleave(2, dim=1).transpose(1, 2) + embedding.mean()
        mel = mel + self.decoder.rand_noise[:, :, : mel.shape[2]]
        return mel[:, :, prompt_feat.shape[1] :], None
"""
HIFT = """
import torch


class HiFTGenerator(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(80, 1)

    @torch.inference_mode()
    def inference(self, speech_feat, cache_source=torch.zeros(1, 1, 0)):
        source = torch.randn(1, 1, 480 * speech_feat.shape[2])
        source[:, :, : cache_source.shape[2]] = cache_source
        loudness = self.mix(speech_feat.transpose(1, 2))[..., 0].repeat_interleave(480, dim=1)
        return loudness + 0.1 * source[:, 0], source
"""
CONFIG = """
__set_seed1: !apply:random.seed [1986]
sample_rate: 24000
qwen_pretrain_path: ''
llm: !new:cosyvoice.llm.llm.Qwen2LM
    llm_input_size: 896
flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithXvec
    vocab_size: 6561
    estimator: !new:cosyvoice.flow.decoder.Estimator {}
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator {}
get_tokenizer: !name:cosyvoice.tokenizer.tokenizer.get_qwen_tokenizer
    skip_special_tokens: True
data_pipeline: [!ref <sample_rate>]
allowed_special: 'all'
"""


def write_checkout(folder: Path) -> Path:
    """Write the modules."""
    for name, text in (("flow/flow", FLOW), ("hifigan/generator", HIFT)):
        path = folder / "cosyvoice" / f"{name}.py"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    (folder / "third_party/Matcha-TTS/matcha").mkdir(parents=True)
    return folder


def write_model(folder: Path) -> Path:
    """Write the configuration, and files where weights would be."""
    folder.mkdir()
    (folder / "cosyvoice2.yaml").write_text(CONFIG)
    for name in ("flow.pt", "hift.pt"):
        (folder / name).write_bytes(b"")
    return folder
