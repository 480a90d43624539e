from .conftest import Toy


def test_x(toy: Toy) -> None:
    code, said = toy.run()
    print(code, said)
    code, said = toy.run("-e", "confirm=local")
    print(code, said)
    print(toy.record.read_text())
    assert 0
