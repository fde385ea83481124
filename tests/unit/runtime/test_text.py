from pipeline.runtime.text import MAX_LISTED, join_first


def test_a_long_list_says_how_many_more_there_are():
    assert join_first("abc") == "a, b, c"
    assert join_first("abc", 2) == "a, b, and 1 more"
    assert join_first("abcd", 2, separator="; ") == "a; b; and 2 more"
    assert join_first([]) == ""
    assert join_first(map(str, range(MAX_LISTED + 1200))).endswith("49, and 1,200 more")
