"""The error of the library."""

import pytest

from llamarec_lkg import LKGError


def test_a_message_is_as_long_as_somebody_reads():
    with pytest.raises(LKGError) as raised:
        raise LKGError(f"k is '{'1' * 100_000}'; it is a number. Write it as one.")
    assert len(str(raised.value)) < 2000
    assert str(raised.value).startswith("k is '11") and str(raised.value).endswith(
        "11'; it is a number. Write it as one."
    )
    assert str(LKGError("k is 1.")) == "k is 1."
