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

// A table that is wider than the page becomes a list: each value beside the name of its column.
const tables = [...document.querySelectorAll('.scroll')];
for (const table of tables) {
  const words = head => [...head.childNodes].filter(node => node.nodeName !== 'SMALL').map(node => node.textContent).join('');
  const names = [...table.querySelectorAll('thead th')].map(words);
  for (const row of table.querySelectorAll('tbody tr')) {
    [...row.cells].forEach((cell, column) => { if (column) cell.dataset.name = names[column]; });
  }
}
function fit() {
  for (const table of tables) {
    table.classList.remove('list');
    if (table.scrollWidth > table.clientWidth) table.classList.add('list');
  }
}
addEventListener('resize', fit);
fit();
