import torch

from maskmill.model.prompts import AMBIGUITY_MASKS, SINGLE_MASK, among_all, best_ambiguity_mask, choose

IOU_NM = torch.tensor([[0.9, 0.1, 0.3, 0.2], [0.1, 0.8, 0.2, 0.3]])


def test_each_kind_of_prompt_has_its_own_outputs():
    assert choose(SINGLE_MASK, IOU_NM).tolist() == [[True, False, False, False]] * 2
    assert choose(AMBIGUITY_MASKS, IOU_NM).tolist() == [[False, True, True, True]] * 2


def test_single_mask_is_no_candidate_when_ambiguity_masks_are_chosen():
    assert best_ambiguity_mask(IOU_NM).tolist() == [2, 1]
    keep_NM = among_all(IOU_NM[:, AMBIGUITY_MASKS] > 0.25)
    assert keep_NM.tolist() == [[False, False, True, False], [False, True, False, True]]
