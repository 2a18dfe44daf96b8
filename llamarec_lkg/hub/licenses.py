"""The Hub's names for licences. Any other text is a licence of its own, which cards call "other".

Source: the table of https://huggingface.co/docs/hub/repositories-licenses, which the Hub checks cards against.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


HUB_LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc
    lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa
    odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl
    zlib
    """.split()
)


_ONE_WORD = re.compile(r"[A-Za-z0-9.+-]+")


def license_metadata(licenses: Sequence[str]) -> dict[str, str | list[str]]:
    """What a card's metadata say of the licences that hold together: `license`, and `license_name` where a single one
    that the Hub has no name for is one word."""
    own = [text for text in licenses if text.lower() not in HUB_LICENSES]
    ids = list(dict.fromkeys("other" if text in own else text.lower() for text in licenses))
    named = len(own) == 1 and _ONE_WORD.fullmatch(own[0])
    return {"license": ids if len(ids) > 1 else (ids or ["unknown"])[0], **({"license_name": own[0]} if named else {})}
