"""gcnet-style: a clip hears its neighbours in the conversation, and nobody else."""

import torch

from rohydr_fast.models.recovery.gcnet import LAYERS, WINDOW, neighbours
from rohydr_fast.models.rohydr import RoHyDR
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
