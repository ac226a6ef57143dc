"""Tests a trained network from its workdir alone: `python eval.py --help`. The last line of stdout is JSON."""

from __future__ import annotations

import os
import sys

from tfspike import eval_options, flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main() -> int:
    with flags.user_errors():
        options = eval_options.parse_eval()
        say = (lambda line: None) if options.json else print
        from tfspike import evaluation, pretrained  # loads TensorFlow: only after the flags are known to be right

        runs = [options.workdir, *options.compare]
        if options.report or options.compare:
            from tfspike import report  # draws pictures: only where they are asked for
            from tfspike.energy import EnergyModel

            report.require_spikes(report.require_several(runs) if options.compare else runs)
        loaded = pretrained.load(options.weights, options.timesteps) if options.weights else None
        if options.predict:
            for answer in evaluation.predict(options, say, loaded):
                print(evaluation.json_line(answer._asdict()))
            return 0
        record = evaluation.evaluate_run(options, say, loaded)
        say(evaluation.describe(record))
        if options.report or options.compare:
            energy = EnergyModel(options.energy_mac, options.energy_ac, options.energy_update, options.energy_memory)
            folder = os.path.join(options.workdir, report.FOLDER)
            if options.report:
                results = report.collect(options.workdir, options, energy, say)
                say(f"Report: {report.write_report(results, folder)}")
                record["energy"] = results.result.energy_record(energy)
            if options.compare:
                say(f"Comparison: {report.compare(runs, folder, options, energy, say)}")
        print(evaluation.json_line(record))
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(main())
