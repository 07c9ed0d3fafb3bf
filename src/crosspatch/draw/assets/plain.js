// A page that does nothing of its own: what all pages share is all of it.
"use strict";
page.begin()();
