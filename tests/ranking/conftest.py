"""What the tests of the ranker share: a processor of the film world, a batch of it, and a backbone in a folder."""

import pytest
from tiny import backbone, examples, processor


@pytest.fixture
def proc(film_dataset):
    return processor(film_dataset).fit(examples(film_dataset))


@pytest.fixture
def letters(film_dataset):
    """The same with candidates behind letters."""
    return processor(film_dataset, readout="letters").fit(examples(film_dataset))


@pytest.fixture(params=["candidates", "letters"])
def either(request, film_dataset):
    """A processor with each readout."""
    return processor(film_dataset, readout=request.param).fit(examples(film_dataset))


@pytest.fixture
def batch(proc, film_dataset):
    return dict(proc(examples(film_dataset)))


@pytest.fixture
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    backbone().save_pretrained(folder)
    return str(folder)
