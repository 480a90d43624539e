"""The restore prover: restores the newest backup, replays the archived WAL, asks the copy what it knows."""
