from fastmask.evaluation.label_errors import find_label_errors
from fastmask.report.sections.suspects import section


def test_the_most_suspicious_label_of_each_person_is_shown(made):
    errors = find_label_errors(made.run)
    text, album = section(made)
    assert len(album.photos) == len(list(dict.fromkeys(error.person for error in errors))[:24])
    (labelled, _), (likely, _), *_ = album.photos[0].lines
    assert labelled.startswith(f"{errors[0].head}: labelled {errors[0].label} ")
    assert likely.startswith(f"more likely {errors[0].suggested} ")
    for head in {error.head for error in errors}:
        assert f"{head} {sum(error.head == head for error in errors)} of" in text.text


def test_a_leaky_split_has_a_warning(leaky):
    assert section(leaky)[0].warning
