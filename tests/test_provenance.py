"""What belongs together is compared in one place, in one sentence."""

import pytest

from genvid.provenance import Origin, ProvenanceError, check_made_from, class_numbers

RECORD = Origin({"tokenizer": "abc", "data": {"clips": 24, "contents": "d1"}}, ["run", "walk"]).record()


def test_what_differs_is_said_with_both_sides_and_the_way_out():
    check_made_from("the model", RECORD, {"tokenizer": "abc"}, "-")
    check_made_from("the model", RECORD, RECORD, "-")
    said = r"the model was not made from this tokenizer \(tokenizer is abc there, xyz here\): train it again"
    with pytest.raises(ProvenanceError, match=said):
        check_made_from("the model", RECORD, {"tokenizer": "xyz"}, "train it again")
    with pytest.raises(ProvenanceError, match=r"from this data \(data\.clips is 24 there, 18 here\)"):
        check_made_from("the model", RECORD, {"data": {"clips": 18, "contents": "d2"}}, "-")


def test_of_what_was_not_recorded_is_said_once_that_nothing_was_checked(caplog):
    for _ in range(2):
        check_made_from("an old model", {}, {"tokenizer": "abc"}, "-")
    assert [record.message for record in caplog.records] == [
        "nothing was checked: an old model has no record of the tokenizer that it was made from"
    ]


def test_classes_are_their_names_in_any_order(caplog):
    assert class_numbers("the model", ["run", "sit", "walk"], ["walk", "run", "sit"]) == [2, 0, 1]
    assert class_numbers("the model", ["train"], ["test"]) == [0]
    assert not caplog.records
    assert class_numbers("an older model", [], ["a", "b"]) == [0, 1]
    assert "nothing was checked: an older model has no record of its classes" in caplog.text


def test_of_many_classes_those_that_differ_come_first():
    many = [f"class {number}" for number in range(101)]
    with pytest.raises(ProvenanceError, match=r"classes class 7, .* and 91 more, but these data have cat, .* and 91"):
        class_numbers("the model", many, [*many[:7], "cat", *many[8:]])


@pytest.mark.parametrize("wanted", [["cat", "dog"], ["run"], ["run", "walk", "sit"]])
def test_other_classes_are_refused_with_both_lists(wanted):
    with pytest.raises(ProvenanceError) as caught:
        class_numbers("the model", ["run", "walk"], wanted)
    assert f"trained on the classes run, walk, but these data have {', '.join(wanted)}" in str(caught.value)
