"""What the tests of checks share: a LeNet that was trained for a moment, and samples to judge it by."""
import pytest
from helpers import faults
from helpers.small_models import learn, lenet


@pytest.fixture(scope="module")
def trained():
    return learn(lenet(num_classes=10))


@pytest.fixture(scope="module")
def data():
    return faults.samples()
