import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UsageError
from pipeline.predict.inputs import Source, find_sources, overlay_names


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = cv2.imencode(".png", np.full((8, 8, 3), 90, np.uint8))[1]
    path.write_bytes(data.tobytes())
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", ".hidden.png", "deep/c.png", "deep/.cache/d.png"):
        write_image(tmp_path / "in" / name)
    (tmp_path / "in/clip.MP4").write_bytes(b"")
    (tmp_path / "in/notes.txt").write_text("no image")
    return tmp_path / "in"


def names(sources):
    return [source.path.name for source in sources]


def test_a_folder_gives_its_images_and_videos_by_name_and_with_recursive_those_below(folder):
    found = find_sources([folder])
    assert names(found) == ["a.JPG", "b.png", "clip.MP4"]
    assert [source.is_video for source in found] == [False, False, True]
    assert names(find_sources([folder], recursive=True)) == ["a.JPG", "b.png", "clip.MP4", "c.png"]


def test_patterns_and_files_keep_their_order_and_each_file_appears_once(folder):
    assert names(find_sources([folder / "b.png", f"{folder}/*.png", str(folder / "a.JPG")])) == ["b.png", "a.JPG"]


def test_a_file_without_a_known_suffix_is_known_by_its_content(folder):
    image = write_image(folder / "photo")
    assert find_sources([image]) == [Source(image, is_video=False)]
    with pytest.raises(UsageError, match=r"notes\.txt is neither an image nor a video that can be read"):
        find_sources([folder / "notes.txt"])


def test_an_animation_is_a_video_and_of_several_pages_the_first_is_predicted(folder, caplog):
    Image.new("L", (8, 8)).save(folder / "a.gif", save_all=True, append_images=[Image.new("L", (8, 8), 90)])
    assert find_sources([folder / "a.gif"]) == [Source(folder / "a.gif", is_video=True)]
    Image.new("L", (8, 8)).save(folder / "a.tif", save_all=True, append_images=[Image.new("L", (8, 8), 90)])
    assert not caplog.messages
    find_sources([folder / "a.tif"])
    assert caplog.messages == [f"{folder}/a.tif has 2 pages, of which the first is predicted"]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("a.JPEG", r"a\.JPEG does not exist; did you mean .*a\.JPG\?"),
        ("zzzzzz", r"zzzzzz does not exist; .*in has \.hidden\.png, a\.JPG"),
        ("gone/a.png", r"gone/a\.png does not exist; the nearest folder is .*in$"),
        ("*.bmp", r"no file matches .*\*\.bmp"),
    ],
)
def test_what_does_not_exist_is_one_sentence_with_the_nearest_name(folder, word, sentence):
    with pytest.raises(UsageError, match=sentence):
        find_sources([folder / word])


def test_a_folder_without_images_names_the_option_that_finds_them(folder):
    (folder / "b.png").unlink(), (folder / "a.JPG").unlink(), (folder / "clip.MP4").unlink()
    with pytest.raises(UsageError, match=r"has no image or video .*; pass --recursive to search its subfolders"):
        find_sources([folder])
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match=r"has no image or video .*; name another folder"):
        find_sources([folder / "empty"])


def test_overlays_of_equal_names_are_numbered(tmp_path):
    sources = [Source(tmp_path / name, is_video=name.endswith("mp4")) for name in ("a/x.jpg", "b/x.jpg", "x.mp4")]
    assert list(overlay_names(sources).values()) == ["x.png", "x-2.png", "x.mp4"]
