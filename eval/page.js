// All videos of a page start together, and pause together.
const videos = [...document.querySelectorAll('video')];
const button = document.getElementById('playback');
let playing = !matchMedia('(prefers-reduced-motion: reduce)').matches;
function show() {
  button.textContent = playing ? 'Pause videos' : 'Play videos';
  for (const video of videos) {
    if (playing) { video.currentTime = 0; video.play(); } else video.pause();
  }
}
function toggle() { playing = !playing; show(); }
button.hidden = videos.length === 0;
button.addEventListener('click', toggle);
for (const video of videos) video.addEventListener('click', toggle);
addEventListener('load', show);
