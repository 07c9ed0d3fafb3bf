// A page of findings has one thing to do: copy the code that finds them anew.
"use strict";
page.onClick("button[data-copy]", page.copy);
document.documentElement.dataset.ready = "yes";
