"""Reports say how many configurations have seen the same test targets."""

from llamarec_lkg.training.test_readings import note_test_reading


def test_other_configurations_are_counted_once_for_each_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMAREC_LKG_CACHE", str(tmp_path))
    assert [note_test_reading("data", name) for name in ("a", "a", "b", "a", "c")] == [0, 0, 1, 1, 2]
    assert note_test_reading("others", "a") == 0
