from pipeline.runtime.text import MAX_LISTED, listed


def test_a_long_list_says_how_many_more_there_are():
    assert listed("abc") == "a, b, c"
    assert listed("abc", 2) == "a, b, and 1 more"
    assert listed("abcd", 2, separator="; ") == "a; b; and 2 more"
    assert listed([]) == ""
    assert listed(map(str, range(MAX_LISTED + 1200))).endswith("49, and 1,200 more")
