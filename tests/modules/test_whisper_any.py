"""A sentence against noise on the real Whisper-base: sweeps by sites equal whole forwards with plain hooks."""

import numpy as np
import pytest
import torch

import crosspatch as xp
from builders_speech import FOX, load_whisper
from crosspatch.audio import load_audio, log_mel
from modules.by_hand import ByHand
from zoo_any_parts import Stack, attention, whole

CROSS = attention("cross", ("encoder_attn", *(f"{x}_proj" for x in "qkv"), "out_proj"), heads=(8, 8), d_head=64)
STACKS = {
    "encoder": Stack("model.encoder.layers", range(6), whole()),
    "decoder": Stack("model.decoder.layers", range(6), whole() | CROSS),
}
SITES = "decoder.cross.head[1|5, *], decoder.resid.post[0|4]@1|5|6, encoder.resid.post[3]@60|110"


@pytest.mark.whisper
def test_sound_against_noise():
    """The strongest head, the strongest position in the decoder and both frames, a whole forward each."""
    loaded = load_whisper("whisper-base")
    mel = log_mel(loaded, [load_audio(FOX)]).mel
    noise = torch.randn(mel.shape, generator=torch.Generator().manual_seed(0)) * mel.std() + mel.mean()
    read = loaded.tokenizer.tokenizer
    start = "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"
    said = torch.tensor([read(f"{start} The quick brown", add_special_tokens=False).input_ids])
    fox, you = (read(word, add_special_tokens=False).input_ids[0] for word in (" fox", " you"))
    runs = [{"input_features": sound, "decoder_input_ids": said, "use_cache": False} for sound in (mel, noise)]
    given = xp.Trial(loaded.module, *runs, lambda output: output.logits[:, -1, fox] - output.logits[:, -1, you], 1)
    effects = xp.patch_any(given, sites=SITES)
    assert not effects.warnings
    assert said.shape[1] == 7

    strength, chosen = np.abs(effects.raw[:, 0]), {}
    for number in np.argsort(strength):
        site = effects.sites[number]
        chosen[site.kind, site.position if site.kind.startswith("encoder") else ""] = number
    assert len(chosen) == 4
    hand = ByHand(given, stacks=STACKS)
    hand.look([hand.spot(effects.sites[number]) for number in chosen.values()])
    for number in chosen.values():
        expected = hand.effect(effects.sites[number])
        np.testing.assert_allclose(effects.raw[number], expected, atol=1e-4 * strength.max(), err_msg=str(number))
        assert np.abs(expected).max() > 1e-3 * strength.max(), effects.sites[number]
    np.testing.assert_allclose(hand.base.numpy(), effects.base, rtol=1e-4)
