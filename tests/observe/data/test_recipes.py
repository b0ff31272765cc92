"""Each data set's schema: made-up rows of it become questions, and rows that cannot are named."""

import pytest

from observe.data.recipes import RECIPES, Rejected, split_options, split_question

PICTURE = {"bytes": b"...", "path": "1.jpg"}
MATHVISION = {
    "id": "7",
    "question": "How many bricks are missing?\n<image1>",
    "options": [],
    "image": "images/7.jpg",
    "decoded_image": PICTURE,
    "answer": "6",
    "solution": None,
    "level": 1,
    "subject": "counting",
}
WE_MATH = {
    "ID": "12",
    "key": "2steps_multi",
    "question number": 3,
    "question": "What is the area of the shaded part?",
    "option": "A. 3 cm²; B. 4 cm²; C. 12.5 cm²; D. 6; E. No correct answer",
    "answer": "C",
    "image_path": PICTURE,
    "knowledge concept": "Area of circles",
}
POLYMATH = {
    "image": PICTURE,
    "category": "spatial_reasoning",
    "answer_option": "1,2,3,4",
    "final_answer_range": "1-4",
    "final_answer": "3",
}
CHOICE = {
    "group": "Math",
    "Question": "At which value of x is f not continuous?\n\nA. a\nB. b only\nC. c",
    "Answer (final answer highlighted)": "B",
    "ImagePath": "Math/1",
}
FREE = {
    "group": "Physics_Free_Response",
    "Question": "How heavy is it? (Final Answer is a value)",
    "Answer (final answer highlighted)": "\\answer{69.5} The first quartile is 69.5.",
    "ImagePath": "Physics_Free_Response/2",
}
MATHV360K = {
    "id": "identity_0",
    "image": "TabMWP/images/4.png",
    "conversations": [
        {
            "from": "human",
            "value": "<image>\nHint: Please answer with the option letter.\n"
            "Question: Which bag is the heaviest?\nChoices:\n(A) red\n(B) blue (A. or B.)",
        },
        {"from": "gpt", "value": "The answer is B."},
    ],
}


def adapt(name, row, **changes):
    return RECIPES[name].adapt({**row, **changes}, 4)


def test_mathvision():
    row = adapt("mathvision", MATHVISION)
    assert (row.id, row.text, row.gold) == ("7", "How many bricks are missing?", "6")
    assert (row.images, row.family, row.level) == ((PICTURE,), "counting", 1)
    panels = adapt("mathvision", MATHVISION, question="Is <image1> like <image2>?")
    assert panels.text == "Is (image 1) like (image 2)?"
    drawn = adapt("mathvision", MATHVISION, options=["<image1>", "<image2>"], answer="A")
    assert drawn.options == ("(image 1)", "(image 2)")
    named = adapt("mathvision", MATHVISION, question="What does <image1> show?\n<image1>")
    assert named.text == "What does the image show?"
    local = adapt("mathvision", MATHVISION, decoded_image=None, options=["A", "B"], answer="B")
    assert (local.images, local.options, local.gold) == (("images/7.jpg",), ("A", "B"), "B")


def test_we_math():
    row = adapt("we_math", WE_MATH)
    assert row.options == ("3 cm²", "4 cm²", "12.5 cm²", "6", "No correct answer")
    assert (row.id, row.gold, row.cluster) == ("12@2steps_multi", "C", "12")
    assert (row.level, row.family) == (2, "Area of circles")
    assert adapt("we_math", WE_MATH, key="2steps_1").level == 1


def test_polymath():
    row = adapt("polymath", POLYMATH)
    assert (row.id, row.gold, row.options) == ("4", "3", ())
    assert "1-4" in row.text
    letter = adapt("polymath", POLYMATH, final_answer="b", final_answer_range="A-D")
    assert (letter.gold, len(letter.options)) == ("B", 4)
    with pytest.raises(Rejected, match="several answers"):
        adapt("polymath", POLYMATH, final_answer="2,4")
    with pytest.raises(Rejected, match="empty"):
        adapt("polymath", POLYMATH, final_answer="")


def test_scemqa():
    row = adapt("scemqa", CHOICE)
    assert row.text == "At which value of x is f not continuous?"
    assert (row.options, row.gold, row.id) == (("a", "b only", "c"), "B", "Math/4")
    free = adapt("scemqa", FREE)
    assert (free.text, free.gold, free.options) == ("How heavy is it?", "69.5", ())
    assert free.family == "Physics"
    both = "\\answer{3.4} \\answer{3}"
    with pytest.raises(Rejected, match=r"3\.4, 3"):
        adapt("scemqa", FREE, **{"Answer (final answer highlighted)": both})


def test_mathv360k():
    row = adapt("mathv360k", MATHV360K)
    assert row.text == "Which bag is the heaviest?"
    assert (row.options, row.gold) == (("red", "blue (A. or B.)"), "B")
    assert (row.family, row.cluster) == ("TabMWP", "TabMWP/images/4.png")
    turns = [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": "12"}]
    assert (free := adapt("mathv360k", MATHV360K, conversations=turns)).gold == "12"
    assert (free.text, free.options) == ("How many?", ())
    with pytest.raises(Rejected, match="one turn"):
        adapt("mathv360k", MATHV360K, conversations=turns * 2)


def test_a_row_without_a_field_names_it():
    for name, row in (("mathvision", MATHVISION), ("we_math", WE_MATH), ("scemqa", CHOICE)):
        for field in ("question", "option", "Question"):
            if field in row:
                with pytest.raises(KeyError, match=field):
                    RECIPES[name].adapt({k: v for k, v in row.items() if k != field}, 0)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("A. 3; B. 4", ("3", "4")),
        ("A.3 cm;B.4 cm;C.5 cm", ("3 cm", "4 cm", "5 cm")),
        ("(A) yes (B) no", ("yes", "no")),
        ("B. 3; C. 4", ()),
        ("A. alone", ()),
        ("", ()),
    ],
)
def test_options_in_one_string(text, options):
    assert split_options(text) == options


def test_options_at_the_end_of_a_question():
    text = "Regions A, B and C:\nA. is it I?\n\nA. I only\nB. II only\nC. both"
    assert split_question(text) == (
        "Regions A, B and C:\nA. is it I?",
        ("I only", "II only", "both"),
    )
    assert split_question("No options here.\nB. or not") == ("No options here.\nB. or not", ())
