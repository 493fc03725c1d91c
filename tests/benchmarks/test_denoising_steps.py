from benchmarks import denoising_steps


def test_a_stopped_measurement_goes_on(run_main, tmp_path, category, capsys, monkeypatch):
    monkeypatch.setattr(denoising_steps, "STRIDES", ((100, 50), (100, 100)))
    monkeypatch.setattr(denoising_steps, "STARTS", ())
    run_main("--train")
    run_main("--detection")
    log = tmp_path / "steps.jsonl"
    tables = []
    for _ in range(2):
        capsys.readouterr()
        denoising_steps.main([str(tmp_path / "checkpoints" / "nut"), str(category.parent), str(log)])
        tables.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")])
    assert tables[0] == tables[1] and [line.split(" | ")[2] for line in tables[0]] == ["n", "2", "1"]
    assert len(log.read_text().splitlines()) == 2
