"""A folder of Zarr arrays over the same rows: written a block at a time, published a revision at a time.

    {fingerprint}/
        fingerprint.json          what the values depend on; the folder is named by its hash
        arrays.zarr/              Zarr v3 and nothing else: {group}/{array}/c.{block}.0..., one row an inner chunk
        index-000001.parquet      which row holds which frame, in revision 1
        shards-000001.parquet     size and crc32c of every shard of revision 1
        manifest-000001.json      names and sha256 of the two tables, counts, provenance
        current.json              the newest revision; moves last
        mirror/                   a second copy of fingerprint, tables and manifests
        journal/                  finished units of a refresh that has not published yet
        damage.json               units that the last verification found damaged
        .lock                     who writes

A **block** is a run of `block_rows` rows; a **unit** is one block of one group (say, of a view): a shard of each array.
Shards never change once they are published. A revision keeps rows, adds blocks at the end and forgets dead rows.
docs/cache_format.md has all of it; `plan` decides, `writer` writes, `reader` reads, `verify` and `collect` look after.
"""
