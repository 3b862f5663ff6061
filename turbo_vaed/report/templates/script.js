"use strict";
(() => {
  const videos = [...document.querySelectorAll("video")];
  const button = document.getElementById("play");
  if (!button || !videos.length) return;
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const show = () => {
    button.textContent = playing ? "Pause all" : "Play all";
    for (const video of videos) playing ? video.play().catch(() => {}) : video.pause();
  };
  button.hidden = false;
  button.addEventListener("click", () => { playing = !playing; show(); });
  show();
})();
