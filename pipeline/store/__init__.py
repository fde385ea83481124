"""A folder of Zarr arrays over common rows: written block by block, published revision by revision.

    {fingerprint}/
        fingerprint.json          everything that decides the values; the folder is named by its hash
        arrays.zarr/              plain Zarr v3: {group}/{array}/c.{block}.0..., one inner chunk per row
        index-000001.parquet      frame of each row in revision 1
        shards-000001.parquet     size and crc32c of every shard of revision 1
        manifest-000001.json      names and sha256 of the two tables, counts, provenance
        current.json              the newest revision; written last
        mirror/                   a second copy of fingerprint, tables and manifests
        journal/                  finished units of a refresh that is not published yet
        damage.json               units that the last verification found damaged
        .lock                     the process that writes

A **block** is a run of `block_rows` rows. A **unit** is one block of one group (for example of a view): one shard per
array. Published shards never change. A new revision keeps rows, appends blocks and drops dead rows.

docs/cache_format.md specifies the format. `plan` decides, `writer` writes, `reader` reads, `verify` checks, `prune`
frees space. `format` describes a kind of store, `state` loads one from disk.
"""
