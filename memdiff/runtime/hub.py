"""Whether the hub can be reached at all: asked once, before its library tries again and again. No torch."""

from functools import cache

SECONDS = 5.0


@cache
def why_unreachable() -> str:
    """Empty where the hub's address answers, if only with a refusal; else what the one request came to, in a line.

    By the hub's own library, so that proxies and certificates are those of downloads. It tries a download five times,
    for half a minute, which is right for a connection that breaks and not for a machine that has none.
    """
    from huggingface_hub import constants, get_session

    try:
        status = get_session().head(constants.ENDPOINT, timeout=SECONDS).status_code
    except Exception as error:  # of whichever HTTP library it uses
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return f"{constants.ENDPOINT} can't be reached ({reason})"
    return f"{constants.ENDPOINT} answers with status {status}" if status >= 500 else ""
