"""gcnet-style: a clip hears its neighbours in the conversation, and nobody else."""

import torch

from rohydr_fast.models.recovery.gcnet import LAYERS, WINDOW, neighbours
from rohydr_fast.models.rohydr import RoHyDR
from rohydr_fast.models.sequences import Sequence
from tests.small_model import open_up, small_batch, small_config

MISSING = torch.tensor([[True, False, False], [False, True, True], [False, False, True], [True, True, False]])
TWO_CONVERSATIONS = torch.tensor([[0, 3], [0, 4], [1, 3], [1, 4]])


def built() -> RoHyDR:
    torch.manual_seed(0)
    model = RoHyDR(small_config(method="gcnet"))
    open_up(model)
    return model.eval()


def predict(model, x, lengths, ids, conversation=TWO_CONVERSATIONS, missing=MISSING):
    with torch.no_grad():
        return model(x, lengths, missing, ids, conversation=conversation)


def test_an_available_modality_of_a_neighbour_matters_and_a_withheld_one_does_not():
    model, (x, lengths, ids) = built(), small_batch()
    clean = predict(model, x, lengths, ids)
    louder = {**x, "a": x["a"].clone()}
    louder["a"][1] += 1  # clip 1 has audio, clip 0 of the same conversation lacks it
    changed = predict(model, louder, lengths, ids)
    assert changed[0] != clean[0] and torch.equal(changed[2:], clean[2:])
    louder = {**x, "t": x["t"].clone()}
    louder["t"][1] += 1  # withheld
    assert torch.equal(predict(model, louder, lengths, ids), clean)


def test_the_order_in_the_batch_does_not_matter():
    model, (x, lengths, ids) = built(), small_batch()
    order = torch.tensor([3, 1, 0, 2])
    clean = predict(model, x, lengths, ids)
    shuffled = predict(
        model,
        {m: part[order] for m, part in x.items()},
        {m: part[order] for m, part in lengths.items()},
        ids[order],
        TWO_CONVERSATIONS[order],
        MISSING[order],
    )
    torch.testing.assert_close(shuffled, clean[order])


def test_the_weights_are_means_over_a_window():
    places = [0, 1, 2, WINDOW, WINDOW + 1, 40]
    conversation = torch.tensor([[7, place] for place in places] + [[8, 1]])
    past, future = neighbours(conversation, len(conversation), torch.zeros(()))
    for i, place in enumerate(places):
        heard = [j for j, other in enumerate(places) if 0 < place - other <= WINDOW]
        expected = torch.zeros(len(conversation))
        expected[heard] = 1 / max(len(heard), 1)
        torch.testing.assert_close(past[i], expected)
    torch.testing.assert_close(past.bool(), future.bool().T)
    assert not past[-1].any() and not future[-1].any()  # alone in its conversation
    assert LAYERS * WINDOW < 40


def vectors(model: RoHyDR, content: dict[str, torch.Tensor], places: list[int], missing=None) -> torch.Tensor:
    """(B, M C) what the graph makes of clips of one conversation; `content` m -> (B, C), at the one token of a clip."""
    clips = len(places)
    sequences = {m: Sequence(x[:, None], torch.ones(clips, dtype=torch.int64)) for m, x in content.items()}
    missing = missing or {m: torch.zeros(clips, dtype=torch.bool) for m in content}
    conversation = torch.tensor([[0, place] for place in places])
    with torch.no_grad():
        return model.recovery.survey(sequences, missing, conversation)


def drawn(clips: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {m: torch.randn(clips, 8, generator=generator) for m in "atv"}


def test_messages_reach_as_far_as_the_window_in_each_layer_and_no_further():
    model, content = built(), drawn(LAYERS + 2)
    # A window apart, so that each layer leads one clip on; behind the last clip but one is a gap.
    places = [WINDOW * i for i in range(LAYERS + 1)] + [WINDOW * (LAYERS + 1) + 1]
    clean = vectors(model, content, places)
    for clip in range(1, LAYERS + 2):
        louder = {**content, "a": content["a"].clone()}
        louder["a"][clip] += 1
        assert torch.equal(vectors(model, louder, places)[0], clean[0]) == (clip > LAYERS), clip


def test_what_came_before_is_told_from_what_comes_after():
    model, content = built(), drawn(3)
    forwards, backwards = (vectors(model, content, places)[1] for places in ([0, 1, 2], [2, 1, 0]))
    assert not torch.allclose(forwards, backwards, atol=1e-3)


def test_a_missing_modality_is_told_from_an_average_one():
    model, content = built(), drawn(2)
    content["a"] = torch.zeros_like(content["a"])  # the mean, as the statistics stand before training
    missing = {m: torch.tensor([m == "a", False]) for m in content}
    there, away = vectors(model, content, [0, 1]), vectors(model, content, [0, 1], missing)
    assert not torch.allclose(there, away, atol=1e-3)


def test_padding_does_not_matter():
    model, (x, lengths, ids) = built(), small_batch()
    padded = {m: torch.nn.functional.pad(part, (0, 0, 0, 3), value=9.0) for m, part in x.items()}
    assert torch.equal(predict(model, padded, lengths, ids), predict(model, x, lengths, ids))
