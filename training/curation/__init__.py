"""Raw footage to a dataset (Stage II of Blattmann et al. 2023, arXiv 2311.15127, appendix C).

A DATASET folder (`stillmotion curate SOURCE... --out DATASET`) holds

    sources.parquet       one row a source file, the broken ones too          SourceRecord
    cuts.parquet          one row a cut                                       Cut
    clips.parquet         one row a clip                                      ClipRecord
    clips/ID.mp4 (.mkv)   the clips themselves
    scores/NAME.parquet   one row a clip and score, raw; NAME is the scorer's ScoreRecord
    captions.parquet      one row a clip and captioner                        CaptionRecord
    thresholds.toml       what the filter keeps; the one file to edit
    selection.parquet     one row a clip: clip_id, kept, dropped_by           training.curation.filter
    shards/000000.tar     the kept clips as WebDataset                        training.curation.write
    manifest.json         what the dataset is, with the hash that a training run records
    report.html           what was dropped, by which axis, with examples
    parts/                finished pieces of work, from which an interrupted run goes on

Tables are sorted by their keys, so that their content does not depend on the order in which work was done.
"""
