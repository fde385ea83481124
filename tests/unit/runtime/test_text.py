from pipeline.runtime.text import MAX_LISTED, join_first, nearest_name, unknown_name


def test_a_long_list_says_how_many_more_there_are():
    assert join_first("abc") == "a, b, c"
    assert join_first("abc", 2) == "a, b, and 1 more"
    assert join_first("abcd", 2, separator="; ") == "a; b; and 2 more"
    assert join_first([]) == ""
    assert join_first(map(str, range(MAX_LISTED + 1200))).endswith("49, and 1,200 more")


def test_an_unknown_name_suggests_the_nearest_one_and_lists_all():
    assert unknown_name("data set", "bp4", ["bp4d", "disfa"]) == (
        "data set 'bp4' does not exist; did you mean 'bp4d'? known ones: bp4d, disfa"
    )
    assert unknown_name("run", "x", ["bp4d"], where=" in y") == "run 'x' does not exist in y; known ones: bp4d"
    assert unknown_name("run", "x", []) == "run 'x' does not exist; known ones: none"
    assert nearest_name("BP4D", ["disfa", "bp4d"]) == "bp4d"
    assert nearest_name("fantrans", ["FAN_Trans"]) == "FAN_Trans"
