from turbo_vaed.distill.curves import LOSS, VALIDATION, write_curves


def test_a_row_per_step_that_has_the_value(tmp_path):
    steps = [
        {"step": 0, "val_psnr": 20.5},
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25, "val_psnr": 21.0},
    ]
    write_curves(steps, tmp_path)
    assert (tmp_path / LOSS).read_text().split() == ["step,loss", "1,0.5", "2,0.25"]
    assert (tmp_path / VALIDATION).read_text().split() == ["step,psnr_db", "0,20.5", "2,21.0"]
    assert {path.name for path in tmp_path.iterdir()} == {LOSS, VALIDATION}
